//! The same driver, clients and checker on a cluster of one, where a fault is an outage.

use crate::fault::{Fault, Target};
use crate::scenarios::scenario;
use crate::support::cluster::Shape;

#[tokio::test(flavor = "multi_thread")]
async fn killed_stopped_and_restarted() {
    let faults =
        [Fault::Kill(Target::Leader), Fault::KillAll, Fault::Pause(Target::Leader), Fault::RollingRestart];
    scenario("one-killed", Shape::of(1), &faults).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn its_clock_jumps() {
    let faults = [3600, -3600].map(|seconds| Fault::ClockJump(Target::Leader, seconds));
    scenario("one-clock", Shape { clocks: true, ..Shape::of(1) }, &faults).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn its_disk_is_full() {
    scenario("one-full", Shape { disks: true, ..Shape::of(1) }, &[Fault::FillDisk(Target::Leader)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_host_of_its_own() {
    scenario("one-host", Shape { hosts: true, ..Shape::of(1) }, &[Fault::Kill(Target::Leader)]).await;
}
