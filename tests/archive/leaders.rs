//! The archive of a cluster: whoever leads a group writes it, and goes on from where the last leader's mark is.

use crate::support::client::Client;
use crate::support::postgres::Postgres;
use crate::support::{create_conversations, cycles};
use crate::world::{ANSWER_MAX, archiving_cluster, fastpaca, lag, until};
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread")]
async fn leaders_change_while_they_write() {
    let Some(postgres) = Postgres::start() else { return };
    let Some((mut cluster, clients)) = archiving_cluster(&postgres, 3, &[]) else { return };
    let ids = create_conversations(&clients[0], "led", 24).await;
    for cycle in 0..cycles(2) as usize {
        let (dead, client) = (cycle % 3, &clients[(cycle + 1) % 3]);
        for n in 0..6 {
            if n == 3 {
                cluster.kill(dead);
            }
            for id in &ids {
                append(client, id, &format!("{cycle}.{n}")).await;
            }
        }
        cluster.spawn(dead);
        cluster.wait_ready();
    }
    until("the archive catches up", async || lag(&clients[0]).await == 0).await;
    let node = format!("http://{}", cluster.addresses().all()[0]);
    let verified = fastpaca(&["archive", "verify", "--url", &node], &postgres.url());
    assert!(verified.status.success(), "{verified:?}");
}

/// Again until it is known to be there: a leader may die under it.
async fn append(client: &Client, id: &str, text: &str) {
    let deadline = Instant::now() + ANSWER_MAX;
    while client.append(id, text).await.status != 201 {
        assert!(Instant::now() < deadline, "nobody takes appends");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
