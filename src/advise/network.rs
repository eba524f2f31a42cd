//! Network of a node: clients, streams, and the other nodes.

use serde::Serialize;

use super::figures::Figures;
use super::load::Load;
use super::rule::Rule;
use super::settings::window_bytes;
use super::workload::Workload;

/// Bytes a second of one node at the peak, heads of HTTP included, those of TCP not.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Network {
    pub clients_in_bytes_per_second: f64,
    pub clients_out_bytes_per_second: f64,
    pub streams_out_bytes_per_second: f64,
    /// To and from other nodes, each way.
    pub peers_bytes_per_second: f64,
}

pub const NETWORK: Rule = Rule {
    id: "network.node",
    title: "network of a node at the peak",
    formula: "in = appends × (message_bytes + request_bytes) + windows × read_request_bytes; out = appends × answer_bytes + windows × (window bytes + head_bytes) + \
              frames × (message_bytes + frame_head_bytes); others: each entry to two replicas, and requests that another node leads sent on; a node's share \
              of all that",
    inputs: "load.*, --message-bytes, --window-messages, figures.*_bytes, nodes",
    source: "`cargo bench --bench advise -- points`: bytes counted by the client",
    departs: "StudyGuru asks for 1 Gbit/s whatever the load; Fastpaca for links below 5 ms between nodes, which no bandwidth replaces",
};

impl Network {
    pub fn of(workload: &Workload, load: &Load, figures: &Figures, nodes: u64) -> Network {
        let serving = nodes.saturating_sub(1).max(1) as f64;
        let (appends, windows) =
            (load.appends_per_second_peak / serving, load.windows_per_second_peak / serving);
        let message = workload.message_bytes as f64;
        let others = nodes as f64 - 1.0;
        let copies = nodes.min(3) as f64 - 1.0;
        let sent_on = if nodes > 1 { others / nodes as f64 } else { 0.0 };
        Network {
            clients_in_bytes_per_second: appends * (message + figures.request_bytes)
                + windows * figures.read_request_bytes,
            clients_out_bytes_per_second: appends * figures.answer_bytes
                + windows * (window_bytes(workload) + figures.head_bytes),
            streams_out_bytes_per_second: load.stream_frames_per_second_peak / serving
                * (message + figures.frame_head_bytes),
            peers_bytes_per_second: appends * (message + figures.frame_bytes) * (copies + sent_on),
        }
    }

    /// The busier direction.
    pub fn busier_bytes_per_second(&self) -> f64 {
        let out = self.clients_out_bytes_per_second + self.streams_out_bytes_per_second;
        out.max(self.clients_in_bytes_per_second) + self.peers_bytes_per_second
    }
}
