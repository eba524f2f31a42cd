//! TLS to Postgres, as the URL asks for it.

use crate::support::create_conversations;
use crate::support::postgres::Postgres;
use crate::world::{World, fastpaca, text};

#[tokio::test(flavor = "multi_thread")]
async fn only_a_database_with_the_right_certificate_is_written_to() {
    let certificate = || rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let (made, other) = (certificate(), certificate());
    let key = made.signing_key.serialize_pem();
    let Some(postgres) = Postgres::start_secured(&made.cert.pem(), &key) else { return };
    let dir = tempfile::tempdir().unwrap();
    let verifying = |name: &str, certificate: &rcgen::Certificate| {
        let path = dir.path().join(name);
        std::fs::write(&path, certificate.pem()).unwrap();
        format!("{}?sslmode=verify-full&sslrootcert={}", postgres.url(), path.display())
    };
    let (url, wrong) = (verifying("right.pem", &made.cert), verifying("wrong.pem", &other.cert));

    let refused = fastpaca(&["migrate"], &wrong);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(text(&refused.stderr).contains("certificate"), "{refused:?}");

    let world = World::over(postgres, url, |node| node);
    let ids = create_conversations(&world.client, "secure", 2).await;
    world.append(&ids, "not for everybody").await;
    world.archive_is_the_log().await;
    let secured = "SELECT count(*) > 0 AND bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
                   WHERE usename = 'fastpaca'";
    assert_eq!(world.postgres.sql(secured), "t");
}
