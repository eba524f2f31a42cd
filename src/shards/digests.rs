//! For operators: what the replicas here hold, as digests to compare with those of other nodes.

use std::sync::Arc;

use super::local::Replica;
use super::{ReadError, Shards};
use crate::store::StoreError;

/// The state of one replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaDigest {
    pub group: u16,
    /// The log index the state is as of.
    pub applied: u64,
    /// Equal on replicas that applied the same entries.
    pub digest: u128,
}

impl Shards {
    /// A digest of every replica here that holds still for long enough. Reads all of them; one caller at a time.
    ///
    /// # Errors
    /// While the node is recovering, and when its files cannot be read.
    pub async fn digests(&self) -> Result<Vec<ReplicaDigest>, ReadError> {
        let turn = self.0.digesting.clone().lock_owned().await;
        let hosted = self.attached()?.local.hosted();
        // It goes on when the caller has gone, and so keeps its turn.
        let digesting = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            digest_all(&hosted)
        });
        let made = digesting.await.map_err(|error| ReadError::Internal(format!("digests: {error}")))?;
        made.map_err(|error| ReadError::Internal(error.to_string()))
    }
}

fn digest_all(hosted: &[Arc<dyn Replica>]) -> Result<Vec<ReplicaDigest>, StoreError> {
    let mut digests = Vec::with_capacity(hosted.len());
    for replica in hosted {
        if let Some((applied, digest)) = replica.store().logical_digest()? {
            digests.push(ReplicaDigest { group: replica.group(), applied, digest });
        }
    }
    Ok(digests)
}
