//! Which tool result answers which call, decided once, when the result is appended.
//!
//! A result that names an id answers the call of that id; otherwise results answer calls by order. "By order" means:
//! among the calls still unanswered, those made since the last plain user message come first (a call that was never
//! answered must not shift every later pair by one), and among these the oldest. Several results may name the same
//! call. The answer is kept in the result as a distance back, so that planning a window needs no look at older history.
//!
//! Bounds: a result more than [`PAIR_REACH`] messages after its call, or after [`MAX_PENDING_CALLS`] further calls were
//! left unanswered, finds no call and stands for itself.

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
        let link = |(index, part): (usize, &PartMeta)| StoredPart {
            kind: part.kind.clone(),
            tokens: part.tokens,
            marker_tokens: part.marker_tokens,
            tool: self.link_part(seq, index as u32, part.tool),
        };
        let parts = message.parts.iter().enumerate().map(link).collect();
        if uses_tools {
            self.forget(seq);
        }
        Parts::new(parts)
    }

    fn link_part(&mut self, seq: u64, part: u32, tool: ToolRef) -> ToolLink {
        match tool {
            ToolRef::None => ToolLink::None,
            ToolRef::Call(digest) => {
                self.calls.push(RecentCall { seq, part, exchange: self.exchange, digest, answered: false });
                ToolLink::Call
            }
            ToolRef::Result(Some(digest)) => {
                let call = self.named(digest).or_else(|| self.next(|call| call.digest.is_none()));
                ToolLink::Result(call.and_then(|call| self.answer(call, seq)))
            }
            ToolRef::Result(None) => {
                let call = self.next(|call| call.digest.is_none()).or_else(|| self.next(|_| true));
                ToolLink::Result(call.and_then(|call| self.answer(call, seq)))
            }
            ToolRef::Exchange(digest) => {
                let call = digest.and_then(|digest| self.named(digest));
                if let Some(call) = call.and_then(|call| self.answer(call, seq)) {
                    return ToolLink::Result(Some(call));
                }
                self.calls.push(RecentCall { seq, part, exchange: self.exchange, digest, answered: true });
                ToolLink::Call
            }
        }
    }

    /// The call with this id: an unanswered one, else the newest.
    fn named(&self, digest: u64) -> Option<usize> {
        let same = |call: &RecentCall| call.digest == Some(digest);
        self.next(same).or_else(|| self.calls.iter().rposition(same))
    }

    /// The first unanswered call of the newest exchange that has one.
    fn next(&self, wanted: impl Fn(&RecentCall) -> bool) -> Option<usize> {
        let pending = |call: &RecentCall| !call.answered && wanted(call);
        let newest = self.calls.iter().rfind(|call| pending(call))?.exchange;
        self.calls.iter().position(|call| call.exchange == newest && pending(call))
    }

    /// `None` when the call is out of reach.
    fn answer(&mut self, call: usize, seq: u64) -> Option<CallRef> {
        let call = &mut self.calls[call];
        let back = seq - call.seq;
        if back > PAIR_REACH {
            return None;
        }
        call.answered = true;
        Some(CallRef { back: back as u32, part: call.part })
    }

    /// Keeps the bounds after the message at `seq`.
    fn forget(&mut self, seq: u64) {
        let answered = self.calls.iter().filter(|call| call.answered).count();
        let mut answered_surplus = answered.saturating_sub(MAX_ANSWERED_CALLS);
        let mut pending_surplus = (self.calls.len() - answered).saturating_sub(MAX_PENDING_CALLS);
        self.calls.retain(|call| {
            let surplus = if call.answered { &mut answered_surplus } else { &mut pending_surplus };
            let keep = *surplus == 0 && seq - call.seq <= PAIR_REACH;
            *surplus = surplus.saturating_sub(1);
            keep
        });
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
