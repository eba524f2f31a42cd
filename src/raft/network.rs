//! Raft's calls to the other replicas, over whatever carries calls between nodes.
//!
//! A call that fails grants nothing. What certainly was not served counts as unreachable, so that openraft backs off;
//! what may have been served is an error of the network, which it retries at once a few times.

use std::future::Future;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{self, BoxFuture};
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt};
use openraft::OptionalSend;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetworkFactory, v2::RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use parking_lot::Mutex;

use super::codec::RecordError;
use super::commits::{Commit, Commits, Told};
use super::rpc::{self, Address, method};
use super::send::{self, Pace};
use super::snapshot::{GroupSnapshot, Snapshot};
use super::types::{Host, ReplicaId, TypeConfig, Vote};
use crate::peer::{CallError, Lane, Peers};

/// Append requests of one group that may be under way to one replica.
const APPENDS_IN_FLIGHT: usize = 8;
/// How long a replica may take to put entries on its disk before the link is taken for broken.
const APPEND_LIMIT: Duration = Duration::from_secs(5);
/// How long a replica may take to say whether it has voted for another leader.
const CONFIRM_LIMIT: Duration = Duration::from_secs(2);
/// First and longest wait after a replica could not be reached.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// What carries calls to other nodes.
pub trait Transport: Send + Sync + 'static {
    /// Calls `method` of the node `to` and waits for the answer for at most `limit`. Calls on one lane reach the
    /// other side in the order in which their futures are first polled.
    fn call(
        &self,
        to: u128,
        lane: Lane,
        method: u16,
        body: Vec<Bytes>,
        limit: Duration,
    ) -> BoxFuture<'_, Result<Bytes, CallError>>;
}

/// The transport of a node that has no peers.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoPeers;

impl Transport for NoPeers {
    fn call(
        &self,
        _to: u128,
        _lane: Lane,
        _method: u16,
        _body: Vec<Bytes>,
        _limit: Duration,
    ) -> BoxFuture<'_, Result<Bytes, CallError>> {
        Box::pin(async { Err(CallError::NotSent("this node has no peers".into())) })
    }
}

impl Transport for Peers {
    fn call(
        &self,
        to: u128,
        lane: Lane,
        method: u16,
        body: Vec<Bytes>,
        limit: Duration,
    ) -> BoxFuture<'_, Result<Bytes, CallError>> {
        Box::pin(async move { Peers::call(self, to, lane, method, &body, limit).await })
    }
}

/// What a replica says of a leader.
pub(crate) enum Confirmation {
    /// It has voted for no later one.
    Confirmed,
    /// It has.
    Denied,
    /// It did not answer, or is not there.
    Missed,
}

/// The node's way to other nodes. All its groups share what may be sent of snapshots.
#[derive(Clone)]
pub(crate) struct Network {
    transport: Arc<dyn Transport>,
    commits: Commits,
    pace: Arc<Pace>,
}

impl Network {
    /// `snapshot_bytes_per_second` is what the node sends of snapshots, to all others together.
    pub(crate) fn new(transport: Arc<dyn Transport>, snapshot_bytes_per_second: u64) -> Self {
        let commits = Commits::new(transport.clone());
        Self { transport, commits, pace: Arc::new(Pace::new(snapshot_bytes_per_second)) }
    }

    /// Asks a replica on another node whether it has voted for somebody later than this leader.
    pub(crate) async fn confirm(&self, node: u128, to: Address, leader: Vote) -> Confirmation {
        let body = vec![rpc::encode_confirm(to, leader)];
        let answer = self.transport.call(node, Lane::Log, method::CONFIRM, body, CONFIRM_LIMIT).await;
        match answer.map(|answer| rpc::decode_confirm_answer(&answer)) {
            Ok(Ok(true)) => Confirmation::Confirmed,
            Ok(Ok(false)) => Confirmation::Denied,
            _ => Confirmation::Missed,
        }
    }

    /// Has a replica on another node told what is committed, soon. Within a runtime.
    pub(crate) fn tell(&self, node: u128, to: Address, commit: Commit) {
        self.commits.tell(node, to, commit);
    }

    /// The way of one group.
    pub(crate) fn of(&self, group: u16) -> NetworkFactory {
        NetworkFactory { group, network: self.clone() }
    }
}

/// Makes the clients of one group.
#[derive(Clone)]
pub(crate) struct NetworkFactory {
    group: u16,
    network: Network,
}

impl RaftNetworkFactory<TypeConfig> for NetworkFactory {
    type Network = Client;

    async fn new_client(&mut self, target: ReplicaId, host: &Host) -> Client {
        Client {
            network: self.network.clone(),
            node: host.node_id,
            to: Address { group: self.group, replica: target },
        }
    }
}

/// The way from one group here to one of its replicas elsewhere.
pub(crate) struct Client {
    network: Network,
    node: u128,
    pub(super) to: Address,
}

impl Client {
    pub(super) fn pace(&self) -> &Pace {
        &self.network.pace
    }

    pub(super) async fn call(
        &self,
        lane: Lane,
        method: u16,
        body: Vec<Bytes>,
        limit: Duration,
    ) -> Result<Bytes, RPCError<TypeConfig>> {
        self.network.transport.call(self.node, lane, method, body, limit).await.map_err(failed)
    }

    async fn append(
        &self,
        rpc: &AppendEntriesRequest<TypeConfig>,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let body = rpc::encode_append(self.to, rpc);
        let answer = self.call(Lane::Log, method::APPEND, body, APPEND_LIMIT).await?;
        rpc::decode_append_answer(&answer).map_err(undecodable)
    }

    /// The answer to one request of a stream, and whether the stream goes on behind it.
    async fn append_of_stream(&self, rpc: AppendEntriesRequest<TypeConfig>, told: &Mutex<Told>) -> Streamed {
        let last = rpc.entries.last().map(|entry| entry.log_id).or(rpc.prev_log_id);
        let answer = match self.append(&rpc).await {
            Ok(AppendEntriesResponse::Conflict) if rpc.prev_log_id.is_none() => Err(RPCError::Network(
                NetworkError::from_string("a conflict without a log id to conflict with"),
            )),
            Ok(answer) => Ok(answer.into_stream_result(rpc.prev_log_id, last)),
            Err(error) => Err(error),
        };
        match &answer {
            Ok(Ok(upto)) if *upto == last => {
                if let Some(commit) = told.lock().answered(rpc.vote, last, rpc.leader_commit) {
                    self.network.commits.tell(self.node, self.to, commit);
                }
                (answer, ControlFlow::Continue(()))
            }
            _ => (answer, ControlFlow::Break(())),
        }
    }

    /// openraft drops a vote's call at its hard limit, and the voter syncs before it answers.
    async fn ask_for_vote(
        &self,
        method: u16,
        rpc: &VoteRequest<TypeConfig>,
        option: &RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let body = vec![rpc::encode_vote(self.to, rpc)];
        let answer = self.call(Lane::Control, method, body, option.hard_ttl()).await?;
        rpc::decode_vote_answer(&answer).map_err(undecodable)
    }

    /// Whether a request of a stream has to be sent; if not, the follower will hear what it has to say.
    fn sends(&self, rpc: &AppendEntriesRequest<TypeConfig>, told: &Mutex<Told>) -> bool {
        let said = told.lock().asks(rpc);
        if let Err(Some(commit)) = said {
            self.network.commits.tell(self.node, self.to, commit);
        }
        said.is_ok()
    }
}

type StreamItem = Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>;
type Streamed = (StreamItem, ControlFlow<()>);

fn failed(error: CallError) -> RPCError<TypeConfig> {
    match error {
        CallError::NotSent(_) | CallError::Refused(_) => Unreachable::from_string(error).into(),
        CallError::Lost(_) => NetworkError::from_string(error).into(),
    }
}

pub(super) fn undecodable(error: RecordError) -> RPCError<TypeConfig> {
    Unreachable::new(&error).into()
}

impl RaftNetworkV2<TypeConfig> for Client {
    type SnapshotData = GroupSnapshot;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.append(&rpc).await
    }

    /// Several requests are under way at a time; answers come in the order of the requests, and the first that is
    /// not a full success ends the stream. What only tells of a commit goes another way, and is not answered.
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, StreamItem>, RPCError<TypeConfig>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        let client = &*self;
        let told = Arc::new(Mutex::new(Told::default()));
        let asked = told.clone();
        let sent = input.filter_map(move |rpc| future::ready(client.sends(&rpc, &asked).then_some(rpc)));
        let append = move |rpc| {
            let told = told.clone();
            async move { client.append_of_stream(rpc, &told).await }
        };
        let answers = sent.map(append).buffered(APPENDS_IN_FLIGHT).boxed();
        let until_broken = stream::unfold(Some(answers), |answers| async {
            let mut answers = answers?;
            let (answer, flow) = answers.next().await?;
            Some((answer, flow.is_continue().then_some(answers)))
        });
        Box::pin(async move { Ok(until_broken.boxed()) })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_for_vote(method::VOTE, &rpc, &option).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_for_vote(method::PRE_VOTE, &rpc, &option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        tokio::select! {
            closed = cancel => Err(closed.into()),
            sent = send::snapshot(self, vote, snapshot) => Ok(sent?),
        }
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let body = vec![rpc::encode_transfer(self.to, &rpc)];
        let answer = self.call(Lane::Control, method::TRANSFER_LEADER, body, option.hard_ttl()).await?;
        rpc::decode_transfer_answer(&answer).map_err(undecodable)
    }

    fn backoff(&self) -> Option<Backoff> {
        let (first, longest) = BACKOFF;
        let waits = std::iter::successors(Some(first), move |wait| Some((*wait * 2).min(longest)));
        Some(Backoff::new(waits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::testing::Cluster;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn replicas_follow_and_one_that_was_cut_off_catches_up_by_the_log() {
        let cluster = Cluster::start().await;
        for n in 0..3 {
            cluster.leader().fill(n).await;
        }
        cluster.agree(3).await;
        cluster.cut(2);
        for n in 2..5 {
            cluster.leader().fill(n).await;
        }
        cluster.heal(2);
        cluster.agree(5).await;
        assert!(cluster.net.seen(method::SNAPSHOT_BEGIN, |_, _| ()).is_empty(), "no snapshot was needed");
        cluster.stop().await;
    }
}
