//! A node none of whose threads of requests is free. Threads of a process cannot be held one by one from outside, so these
//! nodes run within the test.

use crate::ONE_AT_A_TIME;
use crate::fault::node_of;
use crate::support::client::Client;
use crate::support::ports::free_port;
use crate::support::process::START_MAX;
use crate::support::test_dir;
use fastpaca::config::{Config, Secret};
use fastpaca::server::Server;
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Runtime};

const NODES: usize = 3;
const THREADS: usize = 2;

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(THREADS).enable_all().build().unwrap()
}

/// Returns once none of a runtime's threads is free, nor will be before the lock is.
fn hold_threads(runtime: &Runtime, lock: &Arc<RwLock<()>>) {
    let (tell, told) = std::sync::mpsc::channel();
    for _ in 0..THREADS {
        let (lock, tell) = (lock.clone(), tell.clone());
        runtime.spawn(async move {
            tell.send(()).unwrap();
            drop(lock.read());
        });
    }
    (0..THREADS).for_each(|_| told.recv_timeout(START_MAX).unwrap());
}

#[test]
fn others_lead_in_place_of_a_node_whose_threads_are_stuck() {
    let _alone = ONE_AT_A_TIME.blocking_lock();
    let dir = test_dir();
    let addresses: Vec<SocketAddr> =
        (0..NODES).map(|_| SocketAddr::from(([127, 0, 0, 1], free_port()))).collect();
    let mut nodes = Vec::new();
    for (index, address) in addresses.iter().enumerate() {
        let mut config = Config::for_test(dir.path().join(index.to_string()));
        std::fs::create_dir(&config.data_dir).unwrap();
        (config.node_name, config.listen) = (format!("node-{index}"), *address);
        config.cluster_seeds = addresses.iter().map(ToString::to_string).collect();
        config.cluster_secrets = vec![Secret::new("of this test")];
        let runtime = runtime();
        let server = runtime.block_on(Server::start(config)).unwrap();
        nodes.push((runtime, server));
    }
    let [client, stuck] = [addresses[0], addresses[2]].map(|address| Client::at(address, START_MAX));
    let outside = runtime();
    let leaders = |view: &Value| node_of(view, "node-2").and_then(|node| node["leaders"].as_u64());
    let wait = |what: &str, wanted: &dyn Fn(&Value) -> bool| {
        outside.block_on(async {
            let deadline = Instant::now() + START_MAX;
            loop {
                let view = client.get("/v1/cluster").await.expect(200);
                if view["groups_without_leader"] == 0 && wanted(&view) {
                    return;
                }
                assert!(Instant::now() < deadline, "not {what} in time: {view}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
    };
    wait("leading", &|view| leaders(view) > Some(50));

    let lock = Arc::new(RwLock::new(()));
    let held = lock.write().unwrap();
    hold_threads(&nodes[2].0, &lock);
    wait("led by others", &|view| leaders(view) == Some(0));
    drop(held);
    outside.block_on(async {
        assert_eq!(stuck.get("/health/live").await.status, 200);
    });
    wait("leading again", &|view| leaders(view) > Some(50));

    for (runtime, server) in nodes {
        runtime.block_on(server.shutdown());
        runtime.shutdown_background();
    }
}
