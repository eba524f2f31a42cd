//! Every fault against three nodes, each in a short version for CI; `FASTPACA_TEST_CYCLES` repeats the faults.

use crate::ONE_AT_A_TIME;
use crate::fault::{Fault, Target};
use crate::run::{Plan, run, seed};
use crate::support::cluster::Shape;
use crate::support::cycles;
use crate::support::faults::can_trace;

/// Operations for each fault, and for the time before the first.
const SHARE: usize = 400;
/// The same where each takes long.
const SLOW_SHARE: usize = 40;

const NODES: usize = 3;

/// The faults in turn under load, as often as there is time for.
pub(crate) async fn scenario(name: &'static str, shape: Shape, faults: &[Fault]) {
    let _alone = ONE_AT_A_TIME.lock().await;
    let faults = faults.repeat(cycles(1) as usize);
    let operations = SHARE * (faults.len() + 1);
    run(seed(), Plan { name, shape, faults, operations }).await;
}

const ON_LOOPBACK: Shape =
    Shape { size: NODES, hosts: false, clocks: false, disks: false, slow_syncs: false };
const ON_HOSTS: Shape = Shape { hosts: true, ..ON_LOOPBACK };

#[tokio::test(flavor = "multi_thread")]
async fn kills_of_each_role() {
    let faults = [Target::Leader, Target::Follower, Target::Any].map(Fault::Kill);
    scenario("kills", ON_LOOPBACK, &faults).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_killed_at_once() {
    scenario("all-killed", ON_LOOPBACK, &[Fault::KillAll]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_stopped_for_longer_than_its_lease() {
    scenario("stopped", ON_LOOPBACK, &[Fault::Pause(Target::Leader), Fault::Pause(Target::Follower)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions() {
    let faults = [
        Fault::Isolate(Target::Leader),
        Fault::Isolate(Target::Follower),
        Fault::Deafen(Target::Leader),
        Fault::Mute(Target::Leader),
    ];
    scenario("partitions", ON_HOSTS, &faults).await;
}

/// Packets are delayed only where the kernel has netem; it is said where it has not.
#[tokio::test(flavor = "multi_thread")]
async fn loss_and_delay() {
    scenario("lossy", ON_HOSTS, &[Fault::Lossy { percent: 5, delay_ms: 20 }]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clock_jumps() {
    let faults = [3600, -3600, 30 * 86_400].map(|seconds| Fault::ClockJump(Target::Leader, seconds));
    scenario("clocks", Shape { clocks: true, ..ON_LOOPBACK }, &faults).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk() {
    let faults = [Fault::FillDisk(Target::Leader), Fault::FillDisk(Target::Follower)];
    scenario("full-disk", Shape { disks: true, ..ON_LOOPBACK }, &faults).await;
}

/// Of a cloud's volume, say, that is gone without an error.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_hangs() {
    if can_trace() {
        scenario("hung-disk", ON_LOOPBACK, &[Fault::HangDisk(Target::Leader)]).await;
    }
}

/// Votes are synced: on such a disk they take most of the time that they are given.
#[tokio::test(flavor = "multi_thread")]
async fn disks_that_sync_slowly() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let faults = [Fault::Kill(Target::Leader)].repeat(cycles(1) as usize);
    let operations = SLOW_SHARE * (faults.len() + 1);
    let shape = Shape { slow_syncs: true, ..ON_LOOPBACK };
    run(seed(), Plan { name: "slow-syncs", shape, faults, operations }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_loses_nothing() {
    scenario("rolling", ON_LOOPBACK, &[Fault::RollingRestart]).await;
}

/// Each pair of nodes speaks what both know; nobody notices which node is of which version.
#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_upgrade() {
    let faults = [
        Fault::Upgrade(0),
        Fault::Kill(Target::Leader),
        Fault::Upgrade(1),
        Fault::Kill(Target::Any),
        Fault::Upgrade(2),
    ];
    let _alone = ONE_AT_A_TIME.lock().await;
    let plan = Plan { name: "upgrade", shape: ON_LOOPBACK, faults: faults.into(), operations: 6 * SHARE };
    run(seed(), plan).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn membership_changes_while_killing() {
    let faults = [Fault::GrowWhileKilling, Fault::ShrinkWhileKilling];
    // A node that was removed is not added again, so that this does not repeat within one run.
    for _ in 0..cycles(1) {
        let _alone = ONE_AT_A_TIME.lock().await;
        let plan =
            Plan { name: "membership", shape: ON_LOOPBACK, faults: faults.into(), operations: 3 * SHARE };
        run(seed(), plan).await;
    }
}

/// Faults of every kind in an order of the seed's choosing.
#[tokio::test(flavor = "multi_thread")]
async fn everything_that_can_happen() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let seed = seed();
    let mut rng = crate::rng::Rng::new(seed);
    let kinds = [
        Fault::Kill(Target::Any),
        Fault::Kill(Target::Leader),
        Fault::KillAll,
        Fault::Pause(Target::Any),
        Fault::Isolate(Target::Any),
        Fault::Deafen(Target::Any),
        Fault::Mute(Target::Any),
        Fault::Lossy { percent: 3, delay_ms: 10 },
        Fault::ClockJump(Target::Any, 600),
        Fault::FillDisk(Target::Any),
    ];
    let faults: Vec<Fault> = (0..4 * cycles(1)).map(|_| *rng.pick(&kinds)).collect();
    let operations = SHARE * (faults.len() + 1);
    let shape = Shape { clocks: true, disks: true, ..ON_HOSTS };
    run(seed, Plan { name: "everything", shape, faults, operations }).await;
}
