//! Everything that can happen to Postgres, and to the node while it writes there. Afterwards the archive is the log.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use crate::support::create_conversations;
use crate::support::cycles;
use crate::support::faults::SmallDisk;
use crate::support::postgres::{PASSWORD, ROLE};
use crate::world::{World, failures, fill, text};

#[tokio::test(flavor = "multi_thread")]
async fn postgres_killed_mid_batch_and_back() {
    let Some(mut world) = World::start() else { return };
    let ids = create_conversations(&world.client, "killed", 8).await;
    for cycle in 0..cycles(3) {
        for n in 0..10 {
            world.append(&ids, &format!("{cycle}.{n}")).await;
        }
        world.postgres.kill();
        world.append(&ids, "while it is gone").await;
        world.failed("connection").await;
        world.postgres.run();
    }
    world.archive_is_the_log().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_the_database_are_named_and_end() {
    let Some(world) = World::start() else { return };
    let ids = create_conversations(&world.client, "faults", 4).await;
    world.archive_is_the_log().await;
    let faults = [
        (
            "denied",
            format!("ALTER ROLE {ROLE} PASSWORD 'another'"),
            format!("ALTER ROLE {ROLE} PASSWORD '{PASSWORD}'"),
        ),
        (
            "pool_exhausted",
            format!("ALTER ROLE {ROLE} CONNECTION LIMIT 0"),
            format!("ALTER ROLE {ROLE} CONNECTION LIMIT -1"),
        ),
        (
            "read_only",
            format!("ALTER ROLE {ROLE} SET default_transaction_read_only = on"),
            format!("ALTER ROLE {ROLE} RESET default_transaction_read_only"),
        ),
        (
            "schema",
            "ALTER SCHEMA fastpaca RENAME TO elsewhere".to_owned(),
            "ALTER SCHEMA elsewhere RENAME TO fastpaca".to_owned(),
        ),
    ];
    for (kind, fault, repair) in faults {
        world.postgres.sql(&fault);
        // Connections that are there would stay as they were.
        world.postgres.disconnect();
        world.append(&ids, kind).await;
        world.failed(kind).await;
        world.postgres.sql(&repair);
        world.archive_is_the_log().await;
    }
    let log = world.process.log();
    assert!(log.contains("archive_failed") && log.contains("archive_recovered"));
    assert!(!log.contains(PASSWORD));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_the_tables() {
    let Some(world) = World::start() else { return };
    let ids = create_conversations(&world.client, "full", 2).await;
    world.archive_is_the_log().await;
    // Where Postgres may go, whoever it runs as.
    let dir = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(&dir.path().join("disk"), 8 << 20) else { return };
    world.postgres.move_table("fastpaca.events", &disk.path().join("space"));
    let filler = disk.path().join("filler");
    fs::write(&filler, vec![0; disk.free_bytes() as usize]).unwrap();
    for _ in 0..20 {
        world.append(&ids, &"no room for this ".repeat(50)).await;
    }
    world.failed("disk_full").await;
    world.append(&ids, "appends go on").await;
    fs::remove_file(filler).unwrap();
    world.archive_is_the_log().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_that_the_archive_contradicts_stops_alone() {
    let Some(world) = World::start() else { return };
    let ids = create_conversations(&world.client, "conflict", 4).await;
    world.append(&ids, "first").await;
    world.archive_is_the_log().await;
    let cluster = world.cluster_id().await;
    world.postgres.sql(&format!(
        "INSERT INTO fastpaca.events VALUES ('{cluster}', 'conflict-2', 2, 2, now(), 1, false, 'user', '[]', '{{}}',
            NULL, NULL, 'not what the log says', '\\x00112233445566778899aabbccddeeff')"
    ));
    for n in 0..20 {
        world.append(&ids, &n.to_string()).await;
    }
    let lacks = async |id: &str| {
        let path = format!("/internal/versions?id={id}&first=0&limit=1");
        let answer = world.client.get(&path).await.expect(200);
        answer["version"].as_u64().unwrap() - answer["archived_version"].as_u64().unwrap()
    };
    world
        .until("the others are archived", async || {
            lacks("conflict-0").await + lacks("conflict-1").await + lacks("conflict-3").await == 0
        })
        .await;
    world
        .until("one is stopped", async || {
            world.client.metric("fastpaca_archive_stopped_conversations").await == 1.0
        })
        .await;
    assert_eq!(lacks("conflict-2").await, 20, "its mark stays where it was");
    assert!(failures(&world.client, "conflict").await >= 1.0);
    let said = world.process.log();
    assert!(said.lines().any(|line| line.contains("archive_conflict") && line.contains("conflict-2")));
    let verified = world.verify(&["--conversation", "conflict-2"]);
    assert_eq!(verified.status.code(), Some(1));
    assert!(text(&verified.stderr).contains("conflict-2: version 2 "), "{verified:?}");
}

/// The commit waits while the node is killed: what it wrote is there, and nobody was told.
#[tokio::test(flavor = "multi_thread")]
async fn killed_between_the_rows_and_the_mark() {
    let Some(mut world) = World::start() else { return };
    let ids = create_conversations(&world.client, "between", 3).await;
    world.archive_is_the_log().await;
    for cycle in 0..cycles(3) {
        world.postgres.sql(
            "CREATE FUNCTION public.dawdle() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN PERFORM pg_sleep(1.5); RETURN NULL; END $$;
             CREATE CONSTRAINT TRIGGER dawdle AFTER INSERT ON fastpaca.events DEFERRABLE INITIALLY DEFERRED
                FOR EACH ROW EXECUTE FUNCTION public.dawdle()",
        );
        let text = format!("cycle {cycle}");
        world.append(&ids, &text).await;
        let commits =
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query = 'COMMIT'";
        world.until("a commit is under way", async || world.postgres.sql(commits) != "0").await;
        world.process.kill();
        // The commit goes on, and finds nobody to answer.
        world.until("the commit ends", async || world.postgres.sql(commits) == "0").await;
        world.postgres.sql("DROP TRIGGER dawdle ON fastpaca.events; DROP FUNCTION public.dawdle()");
        let there = format!("SELECT count(*) > 0 FROM fastpaca.events WHERE body LIKE '%{text}%'");
        assert_eq!(world.postgres.sql(&there), "t");
        world.restart();
        world.archive_is_the_log().await;
        let attempted = world.client.metric("fastpaca_archive_rows_attempted_total").await;
        assert!(
            attempted > world.client.metric("fastpaca_archive_rows_inserted_total").await,
            "some were there"
        );
    }
}

/// Connections that say nothing: appends and reads go on, and nothing is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_paused_postgres_holds_nobody_up() {
    let Some(world) = World::start() else { return };
    let ids = create_conversations(&world.client, "paused", 4).await;
    world.archive_is_the_log().await;
    world.postgres.pause();
    for n in 0..100 {
        world.append(&ids, &n.to_string()).await;
    }
    let window = world.client.get("/v1/conversations/paused-0/window").await.expect(200);
    assert_eq!(window["version"], 100);
    // All of it waits, and is counted.
    world
        .until("what waits is counted", async || {
            world.client.metric("fastpaca_raft_pending_flush_messages").await == 400.0
        })
        .await;
    world.postgres.resume();
    world.archive_is_the_log().await;
}

/// Postgres that is not there when the server starts, and comes.
#[tokio::test(flavor = "multi_thread")]
async fn the_server_does_not_need_it() {
    let Some(mut world) = World::start() else { return };
    world.postgres.kill();
    world.process.kill();
    world.restart();
    fill(&world.client, "alone").await;
    world.failed("connection").await;
    world.postgres.run();
    world.archive_is_the_log().await;
}

/// Another server may answer a batch's rows than its question what there is.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_steps_over_nothing_that_was_lost_meanwhile() {
    let Some(world) = World::start() else { return };
    let ids = fill(&world.client, "long").await;
    world.archive_is_the_log().await;
    // What a sequence gives out no rollback takes back: this happens once.
    world.postgres.sql(
        "CREATE SEQUENCE losses;
         CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
         BEGIN
             IF nextval('losses') = 1 THEN
                 DELETE FROM fastpaca.events WHERE version > 40;
                 DELETE FROM fastpaca.changes WHERE version > 40;
                 UPDATE fastpaca.conversations SET version = 40, archived_version = 40;
             END IF;
             RETURN NULL;
         END $$;
         CREATE TRIGGER lose BEFORE INSERT ON fastpaca.events FOR EACH STATEMENT EXECUTE FUNCTION lose()",
    );
    world.client.append(&ids[0], "and another").await.expect(201);
    world.failed("other").await;
    world.archive_is_the_log().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_archive_has_lost_is_sent_again() {
    let Some(mut world) = World::start() else { return };
    let mut ids = create_conversations(&world.client, "short", 3).await;
    world.append(&ids, "a word").await;
    ids.extend(fill(&world.client, "long").await);
    world.archive_is_the_log().await;
    let is_whole = async |world: &World, arguments: &[&str]| {
        world.until("it is sent again", async || world.verify(arguments).status.success()).await;
    };
    // As with a standby that lacks what was committed last: some of each long conversation, and all of the short ones.
    let later = "WHERE version > 40 OR conversation_id LIKE 'short%'";
    let go_back = format!(
        "DELETE FROM fastpaca.events {later}; DELETE FROM fastpaca.changes {later};
         DELETE FROM fastpaca.conversations WHERE id LIKE 'short%';
         UPDATE fastpaca.conversations SET version = 40, archived_version = 40"
    );

    // A conversation that is written to finds out by that.
    world.postgres.sql(&go_back);
    let [short, long] = [&ids[0], &ids[3]];
    for id in [short, long] {
        world.client.append(id, "and another").await.expect(201);
        is_whole(&world, &["--conversation", id]).await;
    }
    // The others do when a server of Postgres answers that was started at another time.
    world.postgres.kill();
    world.postgres.run();
    is_whole(&world, &[]).await;
    // Or one that has other tables: a restore.
    world.postgres.sql(&format!(
        "ALTER TABLE fastpaca.conversations RENAME TO former;
         CREATE TABLE fastpaca.conversations (LIKE fastpaca.former INCLUDING ALL);
         ALTER TABLE fastpaca.conversations OWNER TO {ROLE};
         TRUNCATE fastpaca.events, fastpaca.changes"
    ));
    is_whole(&world, &[]).await;
    assert!(world.process.log().contains("archive_lost"));
}
