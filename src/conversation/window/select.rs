//! The choice of what a window holds, within bounds of tokens and of live messages.
//!
//! In this order: the leading system message; the newest message, with the calls and results it is tied to; the
//! summaries, newest first; the other messages from the newest back, until one does not fit. What could not fit into an
//! empty window is passed over.

use super::candidates::Candidates;
use super::summaries::PlannedSummary;
use super::{PlanError, Reason};
use crate::conversation::runs::HistoryError;

/// What a selection may hold.
#[derive(Clone, Copy)]
pub(super) struct Caps {
    /// Live messages.
    pub(super) limit: u64,
    /// Tokens that the policy allows; `u64::MAX` when it leaves that to the budget.
    pub(super) max_tokens: u64,
    /// `u64::MAX` to see what the policy would keep without a budget.
    pub(super) budget: u64,
    /// Live messages that a window within the budget may have, or it is none.
    pub(super) messages_max: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    Open,
    In,
    Out(Reason),
}

pub(super) struct Selection {
    caps: Caps,
    pub(super) tokens: u64,
    /// Live messages taken.
    pub(super) messages: u64,
    pub(super) leading: Choice,
    /// By position.
    pub(super) summaries: Vec<Choice>,
    /// As the candidates, newest first. What is open, or not even looked at, lies beyond the cut.
    pub(super) live: Vec<Choice>,
    /// Why older messages are out.
    pub(super) cut: Option<Reason>,
}

/// Whether something fits beside what was taken before.
enum Room {
    Enough,
    TooLittle(Reason),
    /// Not even an empty window would hold it.
    Never(Reason),
}

impl Selection {
    /// Stops somewhere above `give_up_above` tokens: such a selection only shows that there would be more.
    pub(super) fn make(
        candidates: &mut Candidates<'_>,
        summaries: &[PlannedSummary],
        caps: Caps,
        give_up_above: u64,
    ) -> Result<Selection, PlanError> {
        let mut selection = Selection {
            caps,
            tokens: 0,
            messages: 0,
            leading: Choice::Open,
            summaries: vec![Choice::Open; summaries.len()],
            live: Vec::new(),
            cut: None,
        };
        if let Some(leading) = candidates.leading {
            selection.leading = selection.choose(leading.tokens.into(), 1);
        }
        if let Some(first) = summaries.first().filter(|first| first.leads) {
            selection.summaries[0] = selection.choose(first.tokens, 0);
        }
        selection.choose_live(candidates, summaries, give_up_above)?;
        selection.choose_summaries(summaries);
        Ok(selection)
    }

    /// The summaries follow the first live message taken, so that they cannot keep it out.
    fn choose_live(
        &mut self,
        candidates: &mut Candidates<'_>,
        summaries: &[PlannedSummary],
        give_up_above: u64,
    ) -> Result<(), PlanError> {
        let mut position = 0;
        while self.tokens <= give_up_above {
            // Up to here the selection is the same with the budget as without one.
            if self.messages > self.caps.messages_max {
                return Err(PlanError::TooManyMessages { max: self.caps.messages_max });
            }
            if self.messages >= self.caps.limit {
                self.cut = Some(Reason::OverLimit);
                return Ok(());
            }
            if !candidates.reach(position)? {
                return Ok(());
            }
            if self.live.get(position).is_none_or(|choice| *choice == Choice::Open) {
                let choice = match self.choose_unit(candidates, position)? {
                    Ok(choice) => choice,
                    Err(cut) => {
                        self.cut = Some(cut);
                        return Ok(());
                    }
                };
                if choice == Choice::In {
                    self.choose_summaries(summaries);
                }
            }
            position += 1;
        }
        Ok(())
    }

    /// Decides on the candidate at `position` and all that is tied to it; `Err` if the window ends before it.
    fn choose_unit(
        &mut self,
        candidates: &mut Candidates<'_>,
        position: usize,
    ) -> Result<Result<Choice, Reason>, HistoryError> {
        let unit = candidates.unit(position)?;
        self.live.resize(candidates.scanned().len(), Choice::Open);
        let candidate = candidates.scanned()[position];
        let choice = if candidates.emptied(candidate) {
            Choice::Out(candidates.reason(candidate).unwrap_or(Reason::MessageSkipped))
        } else {
            match self.room(unit.tokens, unit.messages) {
                Room::Enough => self.take(unit.tokens, unit.messages),
                Room::Never(reason) => Choice::Out(reason),
                Room::TooLittle(reason) => return Ok(Err(reason)),
            }
        };
        match candidates.tied_to(position) {
            None => self.live[position] = choice,
            Some(members) => members.iter().for_each(|&member| self.live[member as usize] = choice),
        }
        Ok(Ok(choice))
    }

    fn choose_summaries(&mut self, summaries: &[PlannedSummary]) {
        for (index, summary) in summaries.iter().enumerate().rev() {
            if self.summaries[index] == Choice::Open {
                self.summaries[index] = self.choose(summary.tokens, 0);
            }
        }
    }

    fn choose(&mut self, tokens: u64, messages: u64) -> Choice {
        match self.room(tokens, messages) {
            Room::Enough => self.take(tokens, messages),
            Room::TooLittle(reason) | Room::Never(reason) => Choice::Out(reason),
        }
    }

    fn take(&mut self, tokens: u64, messages: u64) -> Choice {
        self.tokens += tokens;
        self.messages += messages;
        Choice::In
    }

    fn room(&self, tokens: u64, messages: u64) -> Room {
        let Caps { limit, max_tokens, budget, .. } = self.caps;
        let with_tokens = self.tokens.saturating_add(tokens);
        if tokens > budget {
            Room::Never(Reason::ExceedsBudget)
        } else if tokens > max_tokens {
            Room::Never(Reason::OverMaxTokens)
        } else if messages > limit {
            Room::Never(Reason::OverLimit)
        } else if self.messages + messages > limit {
            Room::TooLittle(Reason::OverLimit)
        } else if with_tokens > budget {
            Room::TooLittle(Reason::OverBudget)
        } else if with_tokens > max_tokens {
            Room::TooLittle(Reason::OverMaxTokens)
        } else {
            Room::Enough
        }
    }
}
