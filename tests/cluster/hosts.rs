//! That hosts, their name, cuts between them, and clocks are what the scenarios take them for.

use crate::support::clock::Clock;
use crate::support::cluster::{Cluster, Shape};
use crate::support::netns::{NAME, Network};
use crate::support::process::Node;
use crate::support::test_dir;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// Whether something on one host reaches the server on another.
fn reaches(network: &Network, from: usize, to: usize) -> bool {
    let url = format!("http://{}/health/live", network.socket(to));
    let [program, arguments @ ..] = &network.program(from)[..] else {
        unreachable!("a program is never empty")
    };
    let curl = ["curl", "-sf", "-m", "2", "-o", "/dev/null", &url];
    Command::new(program).args(arguments).args(curl).status().unwrap().success()
}

/// The same, of what must be so: a busy machine may take its time.
fn comes_to_reach(network: &Network, from: usize, to: usize) -> bool {
    (0..10).any(|_| reaches(network, from, to))
}

#[test]
fn hosts_hear_each_other_until_they_are_cut() {
    let shape = Shape { hosts: true, ..Shape::of(1) };
    let Some(mut cluster) = Cluster::prepare(shape, 2) else { return };
    cluster.start_all();
    cluster.wait_ready();
    let network = cluster.network.as_ref().unwrap();
    assert!(comes_to_reach(network, 1, 0) && comes_to_reach(network, 2, 0));
    network.cut(1, 0);
    assert!(
        !reaches(network, 1, 0) && comes_to_reach(network, 2, 0),
        "what one host says is not heard by another"
    );
    network.heal();
    assert!(comes_to_reach(network, 1, 0));
    network.cut(0, 1);
    assert!(!reaches(network, 1, 0) && comes_to_reach(network, 2, 0), "what is answered is not heard either");
    network.heal();
    network.lose(99);
    assert!(!reaches(network, 1, 0) && !reaches(network, 2, 0));
    network.heal();
    network.lose(10);
    assert!((0..20).any(|_| reaches(network, 1, 0)), "a few lost packets are sent again");
}

#[test]
fn the_name_means_every_host() {
    let Some(network) = Network::of(3) else { return };
    for host in 0..3 {
        let [program, arguments @ ..] = &network.program(host)[..] else {
            unreachable!("a program is never empty")
        };
        let resolved =
            Command::new(program).args(arguments).args(["getent", "ahostsv4", NAME]).output().unwrap();
        let resolved = String::from_utf8_lossy(&resolved.stdout).into_owned();
        for host in 0..3 {
            assert!(resolved.contains(&network.socket(host).ip().to_string()), "{resolved}");
        }
    }
}

/// The server's log tells its own time.
#[test]
fn a_clock_is_shifted_while_the_server_runs() {
    let dir = test_dir();
    let Some((clock, node)) = Clock::of(Node::in_dir(dir.path()), dir.path()) else { return };
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    let process = node.start().unwrap();
    assert!((clock.read() - now()).abs() < 60);
    clock.shift(86_400);
    assert!((clock.read() - now() - 86_400).abs() < 60);
    let said = created_by(&process).expect("a conversation has a time");
    assert!((said - now() - 86_400).abs() < 60, "the server does not go by its clock: {said}");
}

/// When a conversation that is created now was created, in the server's opinion, in seconds since 1970.
fn created_by(process: &crate::support::process::Process) -> Option<i64> {
    let url = process.url("/v1/conversations/clock");
    let curl = ["-sf", "-X", "PUT", "-H", "content-type: application/json", "-d", "{}", &url];
    let answer = Command::new("curl").args(curl).output().unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&answer.stdout).unwrap();
    let created: jiff::Timestamp = answer["created_at"].as_str()?.parse().ok()?;
    Some(created.as_second())
}
