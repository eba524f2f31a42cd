//! A server that is started as root goes on as the user it is told to, in the same process, with its data given to that
//! user; started by anybody else it stays who it is.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::time::Duration;

use super::support::faults::skip;
use super::support::process::Node;
use super::support::small_settings;

const USER: u32 = 10_001;

#[test]
fn root_gives_the_data_away_and_goes_on_as_the_user() {
    if !rustix::process::geteuid().is_root() {
        return skip("only root can be anybody else");
    }
    // Outside the build's directory, which the user may not be allowed to reach.
    let dir = tempfile::tempdir().unwrap();
    chown(dir.path(), Some(USER), Some(USER)).unwrap();
    let binary = dir.path().join("fastpaca");
    fs::copy(env!("CARGO_BIN_EXE_fastpaca"), &binary).unwrap();
    let data = dir.path().join("data");
    fs::create_dir_all(data.join("journal")).unwrap();
    fs::write(dir.path().join("other"), "of root").unwrap();
    std::os::unix::fs::symlink(dir.path().join("other"), data.join("link")).unwrap();

    let node = small_settings(Node::in_dir(dir.path())).with_env("FASTPACA_RUN_AS", format!("{USER}:{USER}"));
    let program = ["sh", "-c", "exec \"$0\"", binary.to_str().unwrap()].map(str::to_owned);
    let mut server = node.with_program(program.to_vec()).start().unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(field("Uid:"), vec![USER.to_string(); 4]);
    assert_eq!(field("Gid:"), vec![USER.to_string(); 4]);
    assert_eq!(field("Groups:"), Vec::<String>::new());
    assert_eq!(field("CapEff:"), ["0000000000000000"]);
    assert_eq!(field("NoNewPrivs:"), ["1"]);
    for path in [data.clone(), data.join("journal"), data.join("node-id")] {
        assert_eq!(fs::metadata(&path).unwrap().uid(), USER, "{}", path.display());
    }
    assert_eq!(fs::metadata(dir.path().join("other")).unwrap().uid(), 0, "links are not followed");
    server.terminate();
    assert!(server.wait_exit(Duration::from_secs(30)).unwrap().success(), "signals find it where it was");
}
