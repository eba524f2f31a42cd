//! Which tool result answers which call, decided once, when the result is appended.
//!
//! A result that names an id answers the call of that id; otherwise results answer calls by order. "By order" means:
//! among the calls still unanswered, those made since the last plain user message come first (a call that was never
//! answered must not shift every later pair by one), and among these the oldest. Several results may name the same
//! call. The answer is kept in the result as a distance back, so that planning a window needs no look at older history.
//!
//! Bounds: a result more than [`PAIR_REACH`] messages after its call, or after [`MAX_PENDING_CALLS`] further calls were
//! left unanswered, finds no call and stands for itself.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::codec::{CodecError, Reader, Writer};
use super::message::{CallRef, NewMessage, Parts, RoleKind, StoredPart, ToolLink};
use super::part::{PartKind, PartMeta, ToolRef};

/// How many messages a result may lie behind its call.
pub const PAIR_REACH: u64 = 16 * 1024;
/// Most unanswered calls that are remembered.
pub const MAX_PENDING_CALLS: usize = 128;
/// Most answered calls that are remembered, for further results that name their id.
const MAX_ANSWERED_CALLS: usize = 16;

/// The calls that a coming result may answer, oldest first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct RecentCalls {
    calls: Vec<RecentCall>,
    /// Counts plain user messages (only while calls are remembered): calls of one exchange belong together.
    exchange: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct RecentCall {
    seq: u64,
    part: u32,
    exchange: u64,
    digest: Option<u64>,
    answered: bool,
}

impl RecentCalls {
    /// Takes in the message at `seq` and links its results to their calls.
    pub(super) fn link(&mut self, seq: u64, message: &NewMessage) -> Parts {
        let uses_tools = message.parts.iter().any(|part| part.tool != ToolRef::None);
        if !uses_tools {
            if message.role == RoleKind::User && !self.calls.is_empty() {
                self.exchange += 1;
            }
            if let [PartMeta { kind: PartKind::TEXT, .. }] = message.parts.as_slice() {
                return Parts::TEXT;
            }
        }
        let mut index = if uses_tools { CallIndex::of(&self.calls) } else { CallIndex::default() };
        let link = |(position, part): (usize, &PartMeta)| StoredPart {
            kind: part.kind.clone(),
            tokens: part.tokens,
            marker_tokens: part.marker_tokens,
            tool: self.link_part(&mut index, seq, position as u32, part.tool),
        };
        let parts = message.parts.iter().enumerate().map(link).collect();
        if uses_tools {
            self.forget(seq);
        }
        Parts::new(parts)
    }

    fn link_part(&mut self, index: &mut CallIndex, seq: u64, part: u32, tool: ToolRef) -> ToolLink {
        match tool {
            ToolRef::None => ToolLink::None,
            ToolRef::Call(digest) => {
                self.push(index, RecentCall { seq, part, exchange: self.exchange, digest, answered: false });
                ToolLink::Call
            }
            ToolRef::Result(Some(digest)) => {
                let call = index.named(digest).or_else(|| index.next_of(None));
                ToolLink::Result(call.and_then(|call| self.answer(index, call, seq)))
            }
            ToolRef::Result(None) => {
                let call = index.next_of(None).or_else(|| index.next());
                ToolLink::Result(call.and_then(|call| self.answer(index, call, seq)))
            }
            ToolRef::Exchange(digest) => {
                let call = digest.and_then(|digest| index.named(digest));
                if let Some(call) = call.and_then(|call| self.answer(index, call, seq)) {
                    return ToolLink::Result(Some(call));
                }
                self.push(index, RecentCall { seq, part, exchange: self.exchange, digest, answered: true });
                ToolLink::Call
            }
        }
    }

    fn push(&mut self, index: &mut CallIndex, call: RecentCall) {
        index.add(self.calls.len(), &call);
        self.calls.push(call);
    }

    /// `None` when the call is out of reach.
    fn answer(&mut self, index: &mut CallIndex, at: usize, seq: u64) -> Option<CallRef> {
        let call = &mut self.calls[at];
        let back = seq - call.seq;
        if back > PAIR_REACH {
            return None;
        }
        index.remove_pending(at, call);
        call.answered = true;
        Some(CallRef { back: back as u32, part: call.part })
    }

    /// Keeps the bounds after the message at `seq`. Of answered calls only the newest of each id can be asked for again.
    fn forget(&mut self, seq: u64) {
        let mut ids = BTreeSet::new();
        let (mut answered, mut pending) = (0, 0);
        let mut newest_first = std::mem::take(&mut self.calls);
        newest_first.reverse();
        newest_first.retain(|call| {
            if seq - call.seq > PAIR_REACH {
                return false;
            }
            if !call.answered {
                pending += 1;
                return pending <= MAX_PENDING_CALLS;
            }
            let may_be_asked_for = call.digest.is_some_and(|digest| ids.insert(digest));
            answered += usize::from(may_be_asked_for);
            may_be_asked_for && answered <= MAX_ANSWERED_CALLS
        });
        newest_first.reverse();
        self.calls = newest_first;
        if self.calls.is_empty() {
            *self = RecentCalls::default();
        }
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.calls.capacity() * size_of::<RecentCall>()
    }

    pub(super) fn write(&self, out: &mut Writer) {
        out.count(self.calls.len());
        if self.calls.is_empty() {
            return;
        }
        out.varint(self.exchange);
        let mut before = 0;
        for call in &self.calls {
            out.varint(call.seq - before);
            out.varint(call.part.into());
            out.varint(self.exchange - call.exchange);
            out.u8(u8::from(call.answered) | u8::from(call.digest.is_some()) << 1);
            if let Some(digest) = call.digest {
                out.fixed_u64(digest);
            }
            before = call.seq;
        }
    }

    /// Checks what linking relies on: calls in order, none after `last_seq`.
    pub(super) fn read(input: &mut Reader, last_seq: u64) -> Result<RecentCalls, CodecError> {
        const INVALID: CodecError = CodecError::Invalid("recent calls");
        let count = input.count()?;
        if count > MAX_PENDING_CALLS + MAX_ANSWERED_CALLS {
            return Err(INVALID);
        }
        if count == 0 {
            return Ok(RecentCalls::default());
        }
        let exchange = input.varint()?;
        let mut calls = Vec::with_capacity(count);
        let (mut seq, mut oldest) = (0u64, 0);
        for _ in 0..count {
            seq = seq.checked_add(input.varint()?).filter(|seq| *seq <= last_seq).ok_or(INVALID)?;
            let part = input.varint_u32()?;
            let of = exchange.checked_sub(input.varint()?).filter(|of| *of >= oldest).ok_or(INVALID)?;
            oldest = of;
            let flags = input.u8()?;
            if flags > 3 {
                return Err(INVALID);
            }
            let digest = if flags & 2 != 0 { Some(input.fixed_u64()?) } else { None };
            calls.push(RecentCall { seq, part, exchange: of, digest, answered: flags & 1 != 0 });
        }
        Ok(RecentCalls { calls, exchange })
    }
}

/// Finds calls by their positions while a message is taken in: looking through all calls for every part would take
/// time quadratic in the parts of a message.
#[derive(Default)]
struct CallIndex {
    /// Unanswered calls: those of the newest exchange first, and among these the oldest.
    pending: BTreeSet<(Reverse<u64>, usize)>,
    /// The same, by id.
    pending_by_id: BTreeSet<(Option<u64>, Reverse<u64>, usize)>,
    /// The newest call of each id, answered or not.
    newest: BTreeMap<u64, usize>,
}

impl CallIndex {
    fn of(calls: &[RecentCall]) -> CallIndex {
        let mut index = CallIndex::default();
        calls.iter().enumerate().for_each(|(at, call)| index.add(at, call));
        index
    }

    fn add(&mut self, at: usize, call: &RecentCall) {
        if !call.answered {
            self.pending.insert((Reverse(call.exchange), at));
            self.pending_by_id.insert((call.digest, Reverse(call.exchange), at));
        }
        if let Some(digest) = call.digest {
            self.newest.insert(digest, at);
        }
    }

    fn remove_pending(&mut self, at: usize, call: &RecentCall) {
        self.pending.remove(&(Reverse(call.exchange), at));
        self.pending_by_id.remove(&(call.digest, Reverse(call.exchange), at));
    }

    /// The call with this id: an unanswered one, else the newest.
    fn named(&self, digest: u64) -> Option<usize> {
        self.next_of(Some(digest)).or_else(|| self.newest.get(&digest).copied())
    }

    /// The first unanswered call of the newest exchange that has one.
    fn next(&self) -> Option<usize> {
        self.pending.first().map(|(_, at)| *at)
    }

    /// The same among the calls with this id, or among those without one.
    fn next_of(&self, digest: Option<u64>) -> Option<usize> {
        let mut from = self.pending_by_id.range((digest, Reverse(u64::MAX), 0)..);
        from.next().filter(|(found, ..)| *found == digest).map(|(.., at)| *at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn message(tools: &[ToolRef]) -> NewMessage {
        let part = |&tool| PartMeta { kind: PartKind::Known(1), tokens: 1, marker_tokens: 1, tool };
        let parts = tools.iter().map(part).collect();
        NewMessage { body: bytes::Bytes::new(), token_count: 1, role: RoleKind::Other, parts }
    }

    /// What the result at `seq` answers: how far back, and which part.
    fn answered(calls: &mut RecentCalls, seq: u64, result: ToolRef) -> Option<(u32, u32)> {
        let padding = ToolRef::None;
        let parts = calls.link(seq, &message(&[padding, result]));
        match parts.listed().unwrap()[1].tool {
            ToolLink::Result(call) => call.map(|call| (call.back, call.part)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_result_finds_its_call_within_reach() {
        for (distance, found) in [(PAIR_REACH, Some((PAIR_REACH as u32, 0))), (PAIR_REACH + 1, None)] {
            let mut calls = RecentCalls::default();
            calls.link(5, &message(&[ToolRef::Call(Some(1))]));
            assert_eq!(answered(&mut calls, 5 + distance, ToolRef::Result(Some(1))), found);
        }
    }

    #[test]
    fn the_newest_unanswered_calls_are_remembered() {
        let mut calls = RecentCalls::default();
        for seq in 1..=MAX_PENDING_CALLS as u64 + 1 {
            calls.link(seq, &message(&[ToolRef::Call(Some(seq))]));
        }
        assert_eq!(answered(&mut calls, 500, ToolRef::Result(Some(1))), None);
        assert_eq!(answered(&mut calls, 501, ToolRef::Result(Some(2))), Some((499, 0)));
    }

    #[test]
    fn several_results_may_name_one_call() {
        let mut calls = RecentCalls::default();
        calls.link(1, &message(&[ToolRef::Call(Some(9)), ToolRef::Call(Some(8))]));
        for seq in 2..50 {
            assert_eq!(answered(&mut calls, seq, ToolRef::Result(Some(8))), Some((seq as u32 - 1, 1)));
        }
        assert_eq!(answered(&mut calls, 50, ToolRef::Result(Some(9))), Some((49, 0)));
    }

    /// What linking the message at `seq` means, with a look through all calls for every part.
    fn link_by_scanning(recent: &mut RecentCalls, seq: u64, tools: &[ToolRef]) -> Vec<ToolLink> {
        fn next(calls: &[RecentCall], wanted: impl Fn(&RecentCall) -> bool) -> Option<usize> {
            let pending = |call: &RecentCall| !call.answered && wanted(call);
            let newest = calls.iter().rfind(|call| pending(call))?.exchange;
            calls.iter().position(|call| call.exchange == newest && pending(call))
        }
        let named = |calls: &[RecentCall], digest| {
            let same = |call: &RecentCall| call.digest == Some(digest);
            next(calls, same).or_else(|| calls.iter().rposition(same))
        };
        let unnamed = |call: &RecentCall| call.digest.is_none();
        let mut links = Vec::new();
        for (part, tool) in (0..).zip(tools) {
            let calls = &mut recent.calls;
            let found = match *tool {
                ToolRef::None | ToolRef::Call(_) => None,
                ToolRef::Result(Some(digest)) => named(calls, digest).or_else(|| next(calls, unnamed)),
                ToolRef::Result(None) => next(calls, unnamed).or_else(|| next(calls, |_| true)),
                ToolRef::Exchange(digest) => digest.and_then(|digest| named(calls, digest)),
            };
            let found = found.filter(|at| seq - calls[*at].seq <= PAIR_REACH);
            let answer = found.map(|at| {
                calls[at].answered = true;
                CallRef { back: (seq - calls[at].seq) as u32, part: calls[at].part }
            });
            links.push(match *tool {
                ToolRef::None => ToolLink::None,
                ToolRef::Call(digest) | ToolRef::Exchange(digest) if answer.is_none() => {
                    let answered = matches!(tool, ToolRef::Exchange(_));
                    calls.push(RecentCall { seq, part, exchange: recent.exchange, digest, answered });
                    ToolLink::Call
                }
                _ => ToolLink::Result(answer),
            });
        }
        recent.forget(seq);
        links
    }

    fn tool() -> impl Strategy<Value = ToolRef> {
        let id = prop_oneof![1 => Just(None), 2 => (0..4u64).prop_map(Some), 1 => (0..300u64).prop_map(Some)];
        (id, 0..10u8).prop_map(|(id, which)| match which {
            0 => ToolRef::None,
            1..6 => ToolRef::Call(id),
            6..9 => ToolRef::Result(id),
            _ => ToolRef::Exchange(id),
        })
    }

    proptest! {
        #[test]
        fn links_are_those_that_scanning_finds(
            messages in vec(
                (prop_oneof![9 => 1..3u64, 1 => PAIR_REACH - 2..PAIR_REACH + 2],
                 prop_oneof![8 => vec(tool(), 0..6), 1 => vec(tool(), 0..400)]),
                0..40,
            ),
        ) {
            let (mut linked, mut scanned, mut seq) = (RecentCalls::default(), RecentCalls::default(), 0);
            for (gap, tools) in messages {
                seq += gap;
                let message = NewMessage { role: RoleKind::User, ..message(&tools) };
                let parts = linked.link(seq, &message);
                if tools.iter().all(|tool| *tool == ToolRef::None) {
                    scanned.link(seq, &message);
                } else {
                    let links: Vec<_> = parts.listed().unwrap().iter().map(|part| part.tool).collect();
                    prop_assert_eq!(links, link_by_scanning(&mut scanned, seq, &tools));
                }
                prop_assert_eq!(&linked, &scanned);
            }
        }
    }

    #[test]
    fn nothing_is_remembered_without_tools() {
        let mut calls = RecentCalls::default();
        calls.link(1, &message(&[ToolRef::None]));
        assert_eq!(calls, RecentCalls::default());
        calls.link(2, &message(&[ToolRef::Call(None)]));
        assert_eq!(answered(&mut calls, 3, ToolRef::Result(None)), Some((1, 0)));
        assert_eq!(calls, RecentCalls::default());
    }
}
