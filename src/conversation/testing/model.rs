//! A naive model of conversations: it keeps every accepted command and recomputes everything from the whole log, with
//! no runs, no links and no shortcuts. Slow and plain on purpose.

use super::super::*;

#[derive(Clone, Debug)]
pub(super) struct ModelEvent {
    pub(super) message: NewMessage,
    pub(super) at_ms: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum ModelItem {
    Created(Settings),
    Event(u64),
    Settings(Settings),
    Metadata,
    Compaction { from: u64, to: u64, replacement: Vec<NewMessage> },
    Tombstoned,
}

/// Item `n` is version `n`.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    pub(super) items: Vec<ModelItem>,
    pub(super) events: Vec<ModelEvent>,
}

/// A message of a model window: where it is from, which of its parts remain and what it costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) seq: u64,
    pub(super) to_seq: Option<u64>,
    pub(super) parts: Vec<PartEdit>,
    pub(super) tokens: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct ModelWindow {
    pub(super) used: u64,
    pub(super) needs_compaction: bool,
    pub(super) shown: Vec<Shown>,
}

/// A part by message and position.
pub(super) type PartAt = (u64, usize);

/// Result to call, over a list of messages counted from 1.
pub(super) fn pairs(messages: &[NewMessage]) -> Vec<(PartAt, PartAt)> {
    struct Call {
        at: PartAt,
        exchange: usize,
        digest: Option<u64>,
        answered: bool,
    }
    let mut calls: Vec<Call> = Vec::new();
    let mut pairs = Vec::new();
    let mut exchange = 0;
    for (index, message) in messages.iter().enumerate() {
        let plain = message.parts.iter().all(|part| part.tool == ToolRef::None);
        exchange += usize::from(plain && message.role == RoleKind::User);
        for (position, part) in message.parts.iter().enumerate() {
            let at = (index as u64 + 1, position);
            let pending = |wanted: &dyn Fn(Option<u64>) -> bool, calls: &[Call]| {
                let open: Vec<usize> =
                    (0..calls.len()).filter(|&n| !calls[n].answered && wanted(calls[n].digest)).collect();
                let newest = open.iter().map(|&n| calls[n].exchange).max()?;
                open.into_iter().find(|&n| calls[n].exchange == newest)
            };
            let named = |digest: u64, calls: &[Call]| {
                let newest = (0..calls.len()).rev().find(|&n| calls[n].digest == Some(digest));
                pending(&|known| known == Some(digest), calls).or(newest)
            };
            let call = match part.tool {
                ToolRef::None => continue,
                ToolRef::Call(digest) => {
                    calls.push(Call { at, exchange, digest, answered: false });
                    continue;
                }
                ToolRef::Exchange(digest) => match digest.and_then(|digest| named(digest, &calls)) {
                    Some(call) => Some(call),
                    None => {
                        calls.push(Call { at, exchange, digest, answered: true });
                        continue;
                    }
                },
                ToolRef::Result(Some(digest)) => {
                    named(digest, &calls).or_else(|| pending(&|known| known.is_none(), &calls))
                }
                ToolRef::Result(None) => {
                    pending(&|known| known.is_none(), &calls).or_else(|| pending(&|_| true, &calls))
                }
            };
            if let Some(call) = call {
                calls[call].answered = true;
                pairs.push((at, calls[call].at));
            }
        }
    }
    pairs
}

impl Model {
    pub(super) fn version(&self) -> u64 {
        self.items.len() as u64 - 1
    }

    pub(super) fn settings_at(&self, version: u64) -> &Settings {
        let mut items = self.items[..=version as usize].iter().rev();
        items
            .find_map(|item| match item {
                ModelItem::Created(settings) | ModelItem::Settings(settings) => Some(settings),
                _ => None,
            })
            .expect("creation has settings")
    }

    pub(super) fn last_seq_at(&self, version: u64) -> u64 {
        let events = |item: &&ModelItem| matches!(item, ModelItem::Event(_));
        self.items[..=version as usize].iter().filter(events).count() as u64
    }

    pub(super) fn summaries_at(&self, version: u64) -> Vec<(u64, u64, Vec<NewMessage>)> {
        let mut active: Vec<(u64, u64, Vec<NewMessage>)> = Vec::new();
        for item in &self.items[..=version as usize] {
            if let ModelItem::Compaction { from, to, replacement } = item {
                active.retain(|(f, t, _)| f < from || to < t);
                active.push((*from, *to, replacement.clone()));
            }
        }
        active.sort_by_key(|(from, ..)| *from);
        active
    }

    /// The window as of a version, by the book.
    pub(super) fn window(&self, version: u64, budget: Option<u64>) -> ModelWindow {
        let settings = self.settings_at(version);
        let summaries = self.summaries_at(version);
        let log: Vec<NewMessage> = self.events[..self.last_seq_at(version) as usize]
            .iter()
            .map(|event| event.message.clone())
            .collect();
        let covered = |seq: u64| summaries.iter().any(|(from, to, _)| (*from..=*to).contains(&seq));
        let seqs = 1..=log.len() as u64;
        let live: Vec<Shown> = edited(&log, &settings.policy, &covered)
            .into_iter()
            .zip(seqs)
            .filter(|(_, seq)| !covered(*seq))
            .map(|((parts, tokens), seq)| Shown { seq, to_seq: None, parts, tokens })
            .collect();
        let links: Vec<(u64, u64)> = match settings.policy.strategy() {
            Strategy::StripToolResults(_) => Vec::new(),
            _ if !settings.policy.pairing() => Vec::new(),
            _ => kept_pairs(&log, &live).iter().map(|(result, call)| (result.0, call.0)).collect(),
        };
        let blocks: Vec<Vec<Shown>> = summaries
            .iter()
            .map(|(from, to, replacement)| {
                edited(replacement, &settings.policy, &|_| false)
                    .into_iter()
                    .map(|(parts, tokens)| Shown { seq: *from, to_seq: Some(*to), parts, tokens })
                    .filter(|shown| !gone(shown))
                    .collect()
            })
            .collect();
        let leads = summaries.first().is_some_and(|(from, _, replacement)| {
            *from == 1 && replacement.first().is_some_and(|message| message.role == RoleKind::System)
        });
        let system = log.first().is_some_and(|first| {
            first.role == RoleKind::System && first.parts.iter().all(|part| part.tool == ToolRef::None)
        });
        let choice = Choice { live, links, blocks, leads, system };
        let (limit, max_tokens) = match settings.policy.strategy() {
            Strategy::LastN(bounds)
            | Strategy::StripToolResults(bounds)
            | Strategy::SkipParts { bounds, .. } => (bounds.limit, bounds.max_tokens.unwrap_or(u64::MAX)),
            Strategy::Manual => (u64::MAX, u64::MAX),
        };
        let budget = budget.unwrap_or(settings.token_budget);
        let tokens = |shown: &[Shown]| shown.iter().map(|shown| shown.tokens).sum::<u64>();
        let wanted = choice.pick(limit, max_tokens);
        let needed = tokens(&wanted);
        let shown = if needed <= budget { wanted } else { choice.pick(limit, max_tokens.min(budget)) };
        let trigger = settings.trigger_ratio * settings.token_budget as f64;
        ModelWindow {
            used: tokens(&shown),
            needs_compaction: needed > budget || needed as f64 > trigger,
            shown,
        }
    }
}

fn gone(shown: &Shown) -> bool {
    !shown.parts.is_empty() && shown.parts.iter().all(|part| *part == PartEdit::Drop)
}

/// The pairs whose two parts are both kept in live messages.
pub(super) fn kept_pairs(log: &[NewMessage], live: &[Shown]) -> Vec<(PartAt, PartAt)> {
    let kept = |(seq, part): PartAt| {
        live.iter().any(|shown| shown.seq == seq && shown.parts[part] != PartEdit::Drop)
    };
    pairs(log).into_iter().filter(|(result, call)| kept(*result) && kept(*call)).collect()
}

/// Every message's parts and tokens after the policy's edits.
fn edited(log: &[NewMessage], policy: &Policy, covered: &dyn Fn(u64) -> bool) -> Vec<(Vec<PartEdit>, u64)> {
    let strip = matches!(policy.strategy(), Strategy::StripToolResults(_));
    let links = pairs(log);
    let is_result = |at: PartAt| links.iter().any(|(result, _)| *result == at);
    let rule = |at: PartAt, part: &PartMeta| match policy.strategy() {
        Strategy::StripToolResults(_) => match part.tool {
            ToolRef::None => PartEdit::Keep,
            ToolRef::Result(_) => PartEdit::Drop,
            ToolRef::Exchange(_) if is_result(at) => PartEdit::Drop,
            ToolRef::Call(_) | ToolRef::Exchange(_) => PartEdit::Marker,
        },
        Strategy::SkipParts { kinds, .. }
            if kinds.iter().any(|kind| part.kind.as_str().starts_with(kind)) =>
        {
            PartEdit::Drop
        }
        _ => PartEdit::Keep,
    };
    let mut edits: Vec<Vec<PartEdit>> = log
        .iter()
        .enumerate()
        .map(|(index, message)| {
            let at = |part| (index as u64 + 1, part);
            message.parts.iter().enumerate().map(|(n, part)| rule(at(n), part)).collect()
        })
        .collect();
    if policy.pairing() && !strip {
        let out = |edits: &[Vec<PartEdit>], (seq, part): PartAt| {
            covered(seq) || edits[seq as usize - 1][part] == PartEdit::Drop
        };
        // A result without its call goes; then a call goes that lost all its results.
        for (result, call) in &links {
            if out(&edits, *call) {
                edits[result.0 as usize - 1][result.1] = PartEdit::Drop;
            }
        }
        for (_, call) in &links {
            let mut results = links.iter().filter(|(_, of)| of == call);
            if results.all(|(result, _)| out(&edits, *result)) {
                edits[call.0 as usize - 1][call.1] = PartEdit::Drop;
            }
        }
    }
    let cost = |(message, edits): (&NewMessage, &Vec<PartEdit>)| {
        let parts = || message.parts.iter().zip(edits);
        let lost: u64 = parts()
            .filter(|(_, edit)| **edit != PartEdit::Keep)
            .map(|(part, _)| u64::from(part.tokens))
            .sum();
        let gained: u64 = parts()
            .filter(|(_, edit)| **edit == PartEdit::Marker)
            .map(|(part, _)| u64::from(part.marker_tokens))
            .sum();
        u64::from(message.token_count).saturating_sub(lost) + gained
    };
    let costs: Vec<u64> = log.iter().zip(&edits).map(cost).collect();
    edits.into_iter().zip(costs).collect()
}

struct Choice {
    /// All live messages in order, also those left empty.
    live: Vec<Shown>,
    /// Messages that go together.
    links: Vec<(u64, u64)>,
    blocks: Vec<Vec<Shown>>,
    leads: bool,
    system: bool,
}

impl Choice {
    fn pick(&self, limit: u64, cap: u64) -> Vec<Shown> {
        let mut live: Vec<u64> = Vec::new();
        let mut blocks: Vec<usize> = Vec::new();
        let mut used = 0;
        let sum = |shown: &[&Shown]| shown.iter().map(|shown| shown.tokens).sum::<u64>();
        let block_tokens = |n: usize| sum(&self.blocks[n].iter().collect::<Vec<_>>());

        let system = self.live.first().filter(|first| self.system && first.seq == 1 && !gone(first));
        if let Some(system) = system.filter(|system| system.tokens <= cap && limit >= 1) {
            live.push(1);
            used += system.tokens;
        }
        if self.leads && used + block_tokens(0) <= cap {
            blocks.push(0);
            used += block_tokens(0);
        }
        let mut first_block_to_try = self.blocks.len();
        let mut try_blocks = |used: &mut u64, blocks: &mut Vec<usize>| {
            for n in (0..std::mem::take(&mut first_block_to_try)).rev() {
                if !(n == 0 && self.leads) && *used + block_tokens(n) <= cap {
                    blocks.push(n);
                    *used += block_tokens(n);
                }
            }
        };
        let mut passed_over: Vec<u64> = Vec::new();
        for shown in self.live.iter().rev() {
            let seen = live.contains(&shown.seq) || passed_over.contains(&shown.seq);
            if seen || gone(shown) || (system.is_some() && shown.seq == 1) {
                continue;
            }
            let unit = self.tied(shown.seq);
            let tokens = sum(&self.live.iter().filter(|shown| unit.contains(&shown.seq)).collect::<Vec<_>>());
            if tokens > cap || unit.len() as u64 > limit {
                // A full window ends before anything is passed over.
                if live.len() as u64 >= limit {
                    break;
                }
                passed_over.extend(unit);
            } else if used + tokens <= cap && (live.len() + unit.len()) as u64 <= limit {
                live.extend(unit);
                used += tokens;
                try_blocks(&mut used, &mut blocks);
            } else {
                break;
            }
        }
        try_blocks(&mut used, &mut blocks);
        let mut shown: Vec<Shown> =
            self.live.iter().filter(|shown| live.contains(&shown.seq)).cloned().collect();
        shown.extend(blocks.into_iter().flat_map(|n| self.blocks[n].clone()));
        shown.sort_by_key(|shown| shown.seq);
        shown
    }

    /// The messages tied to `seq`, by following links until nothing is added.
    fn tied(&self, seq: u64) -> Vec<u64> {
        let mut tied = vec![seq];
        loop {
            let more: Vec<u64> = self
                .links
                .iter()
                .flat_map(|(a, b)| [(a, b), (b, a)])
                .filter(|(a, b)| tied.contains(a) && !tied.contains(b))
                .map(|(_, b)| *b)
                .collect();
            if more.is_empty() {
                return tied;
            }
            tied.extend(more);
            tied.sort_unstable();
            tied.dedup();
        }
    }
}
