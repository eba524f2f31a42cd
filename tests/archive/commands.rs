//! The commands around an archive: migrating, verifying, and restoring a cluster from it.

use crate::support::client::Client;
use crate::support::postgres::Postgres;
use crate::support::{create_conversations, small_node, test_dir};
use crate::world::{World, encoded, failures, fastpaca, fill, text};

#[tokio::test(flavor = "multi_thread")]
async fn the_schema_may_be_left_to_a_command() {
    let Some(postgres) = Postgres::start() else { return };
    let url = postgres.url();
    let world = World::over(postgres, url, |node| node.with_env("FASTPACA_MIGRATE", "false"));
    let ids = create_conversations(&world.client, "migrate", 2).await;
    world.failed("schema").await;
    world.until("it says what to do", async || world.process.log().contains("run `fastpaca migrate`")).await;
    assert_eq!(world.postgres.sql("SELECT to_regnamespace('fastpaca') IS NULL"), "t");
    world.append(&ids, "served all the same").await;
    let migrated = fastpaca(&["migrate"], &world.url);
    assert_eq!(text(&migrated.stdout), "applied: archive, summarize\n", "{migrated:?}");
    world.archive_is_the_log().await;
    let again = fastpaca(&["migrate"], &world.url);
    assert_eq!(text(&again.stdout), "the archive's schema is up to date\n");
    world.postgres.sql("UPDATE fastpaca.migrations SET checksum = ''");
    assert_eq!(fastpaca(&["migrate"], &world.url).status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_differs_is_found_and_named() {
    let Some(world) = World::start() else { return };
    let ids = fill(&world.client, "v").await;
    world.archive_is_the_log().await;
    let cluster = world.cluster_id().await;
    let damages = [
        (
            "UPDATE fastpaca.events SET body = replace(body, '0.7', '0.8') WHERE conversation_id = 'v-rich' AND seq = 8",
            "v-rich: version 8 is another",
        ),
        (
            "UPDATE fastpaca.events SET token_count = 8 WHERE conversation_id = 'v-gone' AND seq = 9",
            "v-gone: version 9 is another",
        ),
        (
            "UPDATE fastpaca.events SET digest = '\\x00112233445566778899aabbccddeeff' WHERE seq = 10",
            "the digest of version 10",
        ),
        (
            "DELETE FROM fastpaca.events WHERE conversation_id = 'v-rich' AND seq = 11",
            "v-rich: version 11 is not in the archive",
        ),
        (
            "DELETE FROM fastpaca.changes WHERE conversation_id = 'v-gone' AND version = 0",
            "v-gone: version 0 is not in the archive",
        ),
        (
            "UPDATE fastpaca.changes SET payload_text = '{}' WHERE conversation_id = 'v-gone' AND kind = 'settings'",
            "v-gone: version 184 of v-gone in the archive",
        ),
    ];
    for (damage, _) in &damages {
        world.postgres.sql(damage);
    }
    world.postgres.sql(&format!(
        "INSERT INTO fastpaca.conversations SELECT cluster_id, 'stranger', status, version, archived_version, last_seq,
            token_budget, trigger_ratio, policy, metadata, metadata_text, created_at, updated_at
         FROM fastpaca.conversations WHERE id = 'v-rich' AND cluster_id = '{cluster}'"
    ));
    let verified = world.verify(&[]);
    assert_eq!(verified.status.code(), Some(1));
    let said = text(&verified.stderr);
    for (_, finding) in damages {
        assert!(said.contains(finding), "{finding:?} is missing in\n{said}");
    }
    assert!(said.contains("stranger: in the archive, and not in the log"), "{said}");
    let one = world.verify(&["--conversation", &ids[1]]);
    assert!(!text(&one.stderr).contains("v-rich"));
    assert_eq!(failures(&world.client, "conflict").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_cluster_is_made_of_an_archive() {
    let Some(world) = World::start() else { return };
    let mut ids = fill(&world.client, "r").await;
    ids.extend(create_conversations(&world.client, "r-empty", 2).await);
    ids.push("ünïcode~1".to_owned());
    world.client.create(&encoded(&ids[4])).await;
    world.client.append(&encoded(&ids[4]), "äöü").await.expect(201);
    world.archive_is_the_log().await;

    let dir = test_dir();
    let fresh = small_node(&dir).start().unwrap();
    let arguments = ["restore", "--from-postgres", "--url", &fresh.url("")];
    let restored = fastpaca(&arguments, &world.url);
    assert!(restored.status.success(), "{restored:?}");
    assert_eq!(text(&restored.stdout), "restored 5 conversations with 379 versions\n");
    let client = Client::of(&fresh);
    for id in &ids {
        let id = encoded(id);
        assert_eq!(client.everything(&id).await, world.client.everything(&id).await);
        for at_version in [0, 50, 150, 182, 184] {
            let path = format!("/v1/conversations/{id}/window?explain=true&at_version={at_version}");
            assert_eq!(client.get(&path).await.body, world.client.get(&path).await.body, "{path}");
        }
        let export = format!("/v1/conversations/{id}/events?from_seq=1");
        assert_eq!(bytes(&fresh.url(&export)).await, bytes(&world.process.url(&export)).await);
    }
    // It is a cluster like any other: it takes appends, and no second restore.
    client.append("r-rich", "goes on").await.expect(201);
    assert_eq!(fastpaca(&arguments, &world.url).status.code(), Some(1));
}

async fn bytes(url: &str) -> Vec<u8> {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = http.get(url).header("accept", "application/x-ndjson").send().await.unwrap();
    assert_eq!(answer.status(), 200);
    answer.bytes().await.unwrap().to_vec()
}
