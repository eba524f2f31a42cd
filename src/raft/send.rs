//! The sending end of a snapshot: asks what the receiver lacks and streams it, at the node's pace.

use std::time::Duration;

use bytes::Bytes;
use openraft::errors::{RPCError, Unreachable};
use openraft::raft::SnapshotResponse;
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::{info, warn};

use super::network::{Client, undecodable};
use super::rpc::{self, Wanted, method};
use super::snapshot::{Export, GroupSnapshot, Snapshot};
use super::types::{TypeConfig, Vote};
use crate::peer::Lane;
use crate::store::StoreError;

/// Bytes of blocks after which a request goes out. Tests are to see many requests.
const REQUEST_BYTES: usize = if cfg!(test) { 4 << 10 } else { 512 << 10 };
/// Longest wait for a request's blocks to be taken in.
const BLOCKS_LIMIT: Duration = Duration::from_secs(30);
/// Longest wait for a snapshot to be installed. If it takes longer, the next attempt finds it installed.
const INSTALL_LIMIT: Duration = Duration::from_secs(120);
/// Spreads what a node sends of snapshots over time.
pub(crate) struct Pace {
    bytes_per_second: u64,
    /// When what was let through so far has been paid for.
    free_at: Mutex<Option<Instant>>,
}

impl Pace {
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, free_at: Mutex::default() }
    }

    /// Returns once `bytes` may be sent; in the order of the calls.
    pub(crate) async fn take(&self, bytes: usize) {
        let start = {
            let mut free_at = self.free_at.lock();
            let now = Instant::now();
            let start = free_at.map_or(now, |at| at.max(now));
            let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
            *free_at = Some(start + cost);
            start
        };
        tokio::time::sleep_until(start).await;
    }
}

type Failed = RPCError<TypeConfig>;

/// Brings the replica behind `client` to the snapshot; it is installed there on return.
pub(super) async fn snapshot(
    client: &Client,
    vote: Vote,
    snapshot: Snapshot,
) -> Result<SnapshotResponse<TypeConfig>, Failed> {
    let GroupSnapshot::Local(store) = snapshot.snapshot else {
        return Err(Unreachable::from_string("only what is here can be sent").into());
    };
    let begin = rpc::encode_begin(client.to, &vote, &snapshot.meta);
    let answer = client.call(Lane::Bulk, method::SNAPSHOT_BEGIN, vec![begin], BLOCKS_LIMIT).await?;
    let (session, base, resume) = match Wanted::decode(&answer).map_err(undecodable)? {
        Wanted::Nothing(theirs) => return Ok(SnapshotResponse::new(theirs.unwrap_or(vote))),
        Wanted::Changes { session, base, resume } => (session, base, resume),
    };
    let group = client.to.group;
    let resumed = resume.is_some();
    let mut transfer = Transfer { client, session, requests: 0, bytes: 0 };
    transfer.blocks(Export::start(store, base, resume)).await?;
    let end = rpc::encode_end(client.to, session, transfer.requests);
    let answer = client.call(Lane::Bulk, method::SNAPSHOT_END, vec![end], INSTALL_LIMIT).await?;
    let (requests, bytes, replica) = (transfer.requests, transfer.bytes, client.to.replica);
    info!(event = "snapshot_sent", group, replica, base, resumed, requests, bytes);
    let theirs = rpc::decode_vote_only(&answer).map_err(undecodable)?;
    Ok(SnapshotResponse::new(theirs))
}

struct Transfer<'a> {
    client: &'a Client,
    session: u64,
    requests: u64,
    bytes: u64,
}

impl Transfer<'_> {
    /// One request is under way at a time, while the next one's blocks are being read.
    async fn blocks(&mut self, mut export: Export) -> Result<(), Failed> {
        while let Some(first) = export.next().await.map_err(unreadable)? {
            let mut size = first.len();
            let mut blocks = vec![first];
            while size < REQUEST_BYTES
                && let Some(block) = export.next().await.map_err(unreadable)?
            {
                size += block.len();
                blocks.push(block);
            }
            self.request(blocks, size).await?;
        }
        Ok(())
    }

    async fn request(&mut self, blocks: Vec<Bytes>, size: usize) -> Result<(), Failed> {
        self.client.pace().take(size).await;
        let body = rpc::encode_blocks(self.client.to, self.session, self.requests, blocks);
        self.client.call(Lane::Bulk, method::SNAPSHOT_BLOCKS, body, BLOCKS_LIMIT).await?;
        self.requests += 1;
        self.bytes += size as u64;
        Ok(())
    }
}

/// The state cannot be read here. Another leader may be able to; until then it is tried again with backoff.
fn unreadable(error: StoreError) -> Failed {
    warn!(event = "snapshot_unreadable", %error);
    Unreachable::from_string(error).into()
}
