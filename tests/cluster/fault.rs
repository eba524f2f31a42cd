//! What is done to a cluster under load, and how it is undone.

use crate::rng::Rng;
use crate::support::cluster::Cluster;
use crate::support::faults::Injected;
use reqwest::Method;
use serde_json::Value;
use std::time::Duration;

/// Longer than a leader's lease and an election together: whoever was silent so long has been replaced.
const LONG: Duration = Duration::from_secs(3);

/// Has a server of a debug build speak another range of protocol versions than its own, which is 1 to 1.
pub(crate) const PROTOCOLS: &str = "TEST_FASTPACA_PROTOCOLS";
const NEXT_VERSION: &str = "1-2";

/// Who is meant, when the fault comes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// The leader of the first conversation's group.
    Leader,
    /// Anybody else.
    Follower,
    Any,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// SIGKILL, and a start.
    Kill(Target),
    /// All at once.
    KillAll,
    /// SIGSTOP for longer than a lease, and SIGCONT.
    Pause(Target),
    /// It hears nobody, and nobody hears it.
    Isolate(Target),
    /// It hears nobody.
    Deafen(Target),
    /// Nobody hears it.
    Mute(Target),
    /// All links lose so many of a hundred packets and delay the others.
    Lossy {
        percent: u8,
        delay_ms: u32,
    },
    /// Its wall clock is wrong by so many seconds.
    ClockJump(Target, i64),
    FillDisk(Target),
    /// Its syncs do not return.
    HangDisk(Target),
    /// Each node in turn is asked to stop and started again.
    RollingRestart,
    /// This node is asked to stop and started again as the next version.
    Upgrade(usize),
    /// A node joins while another one is killed.
    GrowWhileKilling,
    /// A node is drained and removed while another one is killed.
    ShrinkWhileKilling,
}

impl Fault {
    /// How long it takes to tell.
    pub(crate) fn holds(self) -> Duration {
        match self {
            Fault::Pause(_) | Fault::Isolate(_) | Fault::Deafen(_) | Fault::Mute(_) => LONG,
            _ => Duration::ZERO,
        }
    }
}

/// A cluster and the hand that breaks it.
pub(crate) struct Nemesis {
    pub(crate) cluster: Cluster,
    /// The group whose leader is meant.
    pub(crate) group: u16,
    pub(crate) rng: Rng,
    /// What hangs a node's disk.
    pub(crate) injected: Option<Injected>,
}

impl Nemesis {
    /// Breaks something; the node that was meant, which [`Nemesis::heal`] wants to know.
    pub(crate) async fn apply(&mut self, fault: Fault) -> usize {
        match fault {
            Fault::Kill(target) => self.on(target, Cluster::kill).await,
            Fault::KillAll => {
                (0..self.cluster.members.len()).for_each(|node| self.cluster.kill(node));
                0
            }
            Fault::Pause(target) => self.on(target, |cluster, node| cluster.pause(node)).await,
            Fault::Isolate(target) => self.on(target, |cluster, node| cut(cluster, node, true, true)).await,
            Fault::Deafen(target) => self.on(target, |cluster, node| cut(cluster, node, true, false)).await,
            Fault::Mute(target) => self.on(target, |cluster, node| cut(cluster, node, false, true)).await,
            Fault::Lossy { percent, delay_ms } => {
                let network = self.cluster.network.as_ref().expect("the shape has hosts");
                network.lose(percent);
                if !network.delay(delay_ms, delay_ms / 2) {
                    eprintln!("this kernel has no netem: packets are lost, but not delayed");
                }
                0
            }
            Fault::ClockJump(target, seconds) => {
                self.on(target, |cluster, node| clock(cluster, node, seconds)).await
            }
            Fault::FillDisk(target) => {
                let node = self.on(target, |cluster, node| cluster.fill_disk(node)).await;
                // Before it has noticed, nothing is different.
                self.cluster.wait_unready(node).await;
                node
            }
            Fault::HangDisk(target) => {
                let node = self.choose(target).await;
                self.injected = Some(tokio::task::block_in_place(|| self.cluster.hang_disk(node)));
                node
            }
            Fault::RollingRestart => {
                self.restart_each();
                0
            }
            Fault::Upgrade(node) => {
                tokio::task::block_in_place(|| self.cluster.terminate(node));
                self.cluster.set(node, PROTOCOLS, NEXT_VERSION);
                self.cluster.spawn(node);
                node
            }
            Fault::GrowWhileKilling => self.grow().await,
            Fault::ShrinkWhileKilling => self.shrink().await,
        }
    }

    /// Undoes it and waits until every node is ready.
    pub(crate) async fn heal(&mut self, fault: Fault, node: usize) {
        match fault {
            Fault::Kill(_) => self.cluster.spawn(node),
            Fault::KillAll => self.cluster.start_all(),
            Fault::Pause(_) => self.cluster.resume(node),
            Fault::Isolate(_) | Fault::Deafen(_) | Fault::Mute(_) | Fault::Lossy { .. } => {
                self.cluster.network.as_ref().expect("the shape has hosts").heal();
            }
            Fault::ClockJump(..) => clock(&mut self.cluster, node, 0),
            Fault::FillDisk(_) => self.cluster.empty_disk(node),
            Fault::HangDisk(_) => self.injected = None,
            Fault::Upgrade(node) => {
                let name = self.cluster.members[node].name.clone();
                self.cluster.wait_view("upgraded", |view| protocol_of(view, &name) == Some((1, 2))).await;
            }
            Fault::RollingRestart | Fault::GrowWhileKilling | Fault::ShrinkWhileKilling => {}
        }
        self.wait_ready();
    }

    /// Whether more than half of the nodes work as ever between the fault and its end.
    pub(crate) fn leaves_majority(&self, fault: Fault) -> bool {
        self.cluster.members.len() > 2 && !matches!(fault, Fault::KillAll)
    }

    fn wait_ready(&mut self) {
        tokio::task::block_in_place(|| self.cluster.wait_ready());
    }

    async fn on(&mut self, target: Target, act: impl FnOnce(&mut Cluster, usize)) -> usize {
        let node = self.choose(target).await;
        act(&mut self.cluster, node);
        node
    }

    async fn choose(&mut self, target: Target) -> usize {
        let leader = self.cluster.leader_of(self.group).await;
        let nodes: Vec<usize> = match (target, leader) {
            (Target::Leader, Some(leader)) => vec![leader],
            (Target::Follower, Some(leader)) if self.cluster.members.len() > 1 => {
                (0..self.cluster.members.len()).filter(|&node| node != leader).collect()
            }
            _ => (0..self.cluster.members.len()).collect(),
        };
        *self.rng.pick(&nodes)
    }

    fn restart_each(&mut self) {
        for node in 0..self.cluster.members.len() {
            tokio::task::block_in_place(|| {
                self.cluster.terminate(node);
                self.cluster.spawn(node);
                self.cluster.wait_ready();
            });
        }
    }

    async fn grow(&mut self) -> usize {
        let others = self.cluster.members.len();
        let new = self.cluster.add();
        let name = self.cluster.members[new].name.clone();
        // One that gives, and the one that takes.
        for victim in [self.rng.below(others), new] {
            self.cluster
                .wait_view("growing", |view| is_moving(view) && groups_of(view, &name) > Some(0))
                .await;
            self.cluster.kill(victim);
            self.cluster.spawn(victim);
        }
        self.wait_ready();
        self.cluster.wait_view("grown", |view| groups_of(view, &name) > Some(0)).await;
        new
    }

    async fn shrink(&mut self) -> usize {
        let leaving = self.cluster.members.len() - 1;
        let name = self.cluster.members[leaving].name.clone();
        let client = self.cluster.client(leaving);
        client.request(Method::POST, "/v1/cluster/drain", None).await.expect("the node runs").expect(200);
        self.cluster.wait_view("shrinking", is_moving).await;
        let victim = self.rng.below(leaving);
        self.cluster.kill(victim);
        self.cluster.spawn(victim);
        // A node that is being drained serves, and says that it is not ready for more.
        tokio::task::block_in_place(|| self.cluster.wait_ready_of(|node| node != leaving));
        self.cluster.wait_view("drained", |view| groups_of(view, &name) == Some(0)).await;
        let client = self.cluster.client(victim);
        let path = format!("/v1/cluster/nodes/{name}");
        client.request(Method::DELETE, &path, None).await.expect("the node runs").expect(204);
        self.cluster.wait_view("without it", |view| groups_of(view, &name).is_none()).await;
        self.cluster.kill(leaving);
        leaving
    }
}

/// A node in the view of the cluster.
pub(crate) fn node_of<'a>(view: &'a Value, name: &str) -> Option<&'a Value> {
    view["nodes"].as_array()?.iter().find(|node| node["name"] == name)
}

/// The range of protocol versions that the cluster knows of a node.
pub(crate) fn protocol_of(view: &Value, name: &str) -> Option<(u64, u64)> {
    let node = node_of(view, name)?;
    Some((node["protocol"][0].as_u64()?, node["protocol"][1].as_u64()?))
}

/// Whether groups are on their way to other nodes.
fn is_moving(view: &Value) -> bool {
    view["moving"].as_u64() > Some(0)
}

/// How many groups a node hosts, in the view of the cluster.
pub(crate) fn groups_of(view: &Value, name: &str) -> Option<u64> {
    node_of(view, name)?["groups"].as_u64()
}

fn cut(cluster: &mut Cluster, node: usize, deaf: bool, mute: bool) {
    let network = cluster.network.as_ref().expect("the shape has hosts");
    for other in (0..cluster.members.len()).filter(|&other| other != node) {
        if deaf {
            network.cut(other, node);
        }
        if mute {
            network.cut(node, other);
        }
    }
}

fn clock(cluster: &mut Cluster, node: usize, seconds: i64) {
    cluster.members[node].clock.as_ref().expect("the shape has clocks").shift(seconds);
}
