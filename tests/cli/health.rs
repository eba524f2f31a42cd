//! `fastpaca health`, as a container's health check runs it.

use crate::run::{asking, command, fails, succeeds};
use crate::support::{small_node, test_dir};

#[test]
fn health_is_told_by_the_exit_code() {
    let dir = test_dir();
    let mut server = small_node(&dir).with_env("FASTPACA_API_KEY", "secret").start().unwrap();
    assert_eq!(succeeds(&mut asking(&server, &["health"])), "ok\n");
    assert_eq!(succeeds(&mut asking(&server, &["health", "--live"])), "ok\n");
    // Without any word about the address, it is that of the settings which the server itself has.
    let own = server.address().to_string();
    assert_eq!(succeeds(command(&["health"]).env("FASTPACA_LISTEN", &own)), "ok\n");

    server.kill();
    assert!(fails(&mut asking(&server, &["health"]), 1).contains("cannot be reached"));
    assert!(
        fails(&mut command(&["health", "--url", "here"]), 2)
            .contains("--url: \"here\" is no http://HOST:PORT")
    );
    assert!(fails(command(&["health"]).env("FASTPACA_URL", "here"), 2).contains("FASTPACA_URL"));
}

#[test]
fn a_node_that_waits_for_others_lives_and_is_not_ready() {
    let dir = test_dir();
    let alone = small_node(&dir).with_env("FASTPACA_CLUSTER_SEED", "127.0.0.1:1");
    let alone = alone.with_env("FASTPACA_CLUSTER_SECRET", "secret");
    let mut server = alone.spawn().unwrap();
    server.wait_listening(crate::support::process::START_MAX).unwrap();
    assert_eq!(succeeds(&mut asking(&server, &["health", "--live"])), "ok\n");
    assert!(fails(&mut asking(&server, &["health"]), 1).contains("starting: "));
}
