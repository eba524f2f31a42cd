//! The encoding of restored versions within a command.

use super::codec::{CodecError, Reader, Writer};
use super::command::{FrameLocation, read_messages, read_some, write_messages, write_some};
use super::idempotency::IdempotencyRecord;
use super::message::Location;
use super::policy::{read_settings, write_settings};
use super::restore::{Restore, RestoreEnd, RestoredKeys, RestoredVersion};

const CREATED: u8 = 0;
const EVENTS: u8 = 1;
const SETTINGS: u8 = 2;
const METADATA: u8 = 3;
const COMPACTION: u8 = 4;
const TOMBSTONED: u8 = 5;

impl Restore {
    pub(super) fn write(&self, out: &mut Writer) {
        out.optional(self.after);
        out.count(self.versions.len());
        for version in &self.versions {
            match version {
                RestoredVersion::Created(settings) => {
                    out.u8(CREATED);
                    write_settings(out, settings);
                }
                RestoredVersion::Events { inserted_at_ms, messages } => {
                    out.u8(EVENTS);
                    out.varint(*inserted_at_ms);
                    write_messages(out, messages);
                }
                RestoredVersion::Settings(settings) => {
                    out.u8(SETTINGS);
                    write_settings(out, settings);
                }
                RestoredVersion::Metadata => out.u8(METADATA),
                RestoredVersion::Compaction { from_seq, to_seq, inserted_at_ms, replacement } => {
                    out.u8(COMPACTION);
                    out.varint(*from_seq);
                    out.varint(*to_seq);
                    out.varint(*inserted_at_ms);
                    write_messages(out, replacement);
                }
                RestoredVersion::Tombstoned => out.u8(TOMBSTONED),
            }
        }
        write_some(out, &self.end, |out, end| {
            out.bytes(&end.metadata);
            out.varint(end.updated_at_ms);
        });
        if let Some(RestoredKeys { after, keys }) = &self.keys {
            out.varint(*after);
            out.count(keys.len());
            for (key, record) in keys {
                out.raw(key);
                out.bytes(&record.encode());
            }
        }
    }

    /// `has_keys` says whether keys were written.
    pub(super) fn read(
        input: &mut Reader,
        has_keys: bool,
        base: FrameLocation,
        locations: &mut Vec<Location>,
    ) -> Result<Restore, CodecError> {
        let after = input.optional()?;
        let mut versions = Vec::new();
        for _ in 0..input.count()? {
            versions.push(match input.u8()? {
                CREATED => RestoredVersion::Created(read_settings(input)?),
                EVENTS => RestoredVersion::Events {
                    inserted_at_ms: input.varint()?,
                    messages: read_messages(input, base, locations)?,
                },
                SETTINGS => RestoredVersion::Settings(read_settings(input)?),
                METADATA => RestoredVersion::Metadata,
                COMPACTION => RestoredVersion::Compaction {
                    from_seq: input.varint()?,
                    to_seq: input.varint()?,
                    inserted_at_ms: input.varint()?,
                    replacement: read_messages(input, base, locations)?,
                },
                TOMBSTONED => RestoredVersion::Tombstoned,
                other => {
                    return Err(CodecError::UnknownOrdinal { what: "restored version", value: other.into() });
                }
            });
        }
        let end = read_some(input, |input| {
            Ok(RestoreEnd { metadata: input.bytes()?, updated_at_ms: input.varint()? })
        })?;
        let keys = if has_keys { Some(RestoredKeys::read(input)?) } else { None };
        Ok(Restore { after, versions, keys, end })
    }
}

impl RestoredKeys {
    fn read(input: &mut Reader) -> Result<RestoredKeys, CodecError> {
        let after = input.varint()?;
        let mut keys = Vec::new();
        for _ in 0..input.count()? {
            keys.push((input.digest()?, IdempotencyRecord::decode(input.bytes()?)?));
        }
        Ok(RestoredKeys { after, keys })
    }
}
