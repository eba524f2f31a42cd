//! What this node answers when others call about the cluster.

use std::sync::Arc;

use bytes::Bytes;

use super::calls::{self, ChangeAnswer, ChangeRequest, StateAnswer, Status};
use super::founding::Event;
use super::service::Inner;
use super::state::NodeId;
use crate::peer::{Answer, Refused, Remote, Service, served_by};

/// Serves the calls of this module.
pub(super) struct Answers(pub(super) Arc<Inner>);

impl Service for Answers {
    fn call<'a>(&'a self, from: &'a Remote, method: u16, body: Bytes) -> Answer<'a> {
        let (inner, from) = (self.0.clone(), from.clone());
        let answering = self.0.runtime.spawn(async move { inner.answer(&from, method, body).await });
        Box::pin(served_by(answering))
    }
}

impl Inner {
    async fn answer(&self, from: &Remote, method: u16, body: Bytes) -> Result<Bytes, Refused> {
        match method {
            calls::FOUNDING => {
                self.on(Event::Received(NodeId(from.node_id), calls::decode(&body)?)).await;
                calls::encode(&())
            }
            calls::STATUS => {
                let cluster = *self.cluster.lock();
                calls::encode(&Status { cluster, you: from.address.to_string() })
            }
            calls::CHANGE => {
                let ChangeRequest { change, hops_left } = calls::decode(&body)?;
                let failure = self.make(change, hops_left).await.err().map(|error| error.describe());
                calls::encode(&ChangeAnswer { failure })
            }
            calls::STATE => {
                let known = self.document.borrow().clone();
                calls::encode(&known.map(|document| StateAnswer {
                    version: document.version,
                    state: document.state.encode(),
                }))
            }
            calls::REPORT => {
                let known = self.document.borrow().clone();
                calls::encode(&self.report(known.as_deref()))
            }
            _ => Err(Refused(format!("there is no method {method}"))),
        }
    }
}
