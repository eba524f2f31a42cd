//! A Prometheus of a test's own; ends with its value.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::passes;
use super::support::ports::free_port;
use super::support::process::probe;

pub(crate) struct Prometheus {
    child: Child,
    address: SocketAddr,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Prometheus {
    /// In `dir`, which is there, with this configuration. Its past is what `promtool` makes of `openmetrics`.
    pub(crate) fn start(dir: &Path, config: &str, openmetrics: Option<&str>) -> Prometheus {
        let (history, data, file) = (dir.join("history.om"), dir.join("tsdb"), dir.join("prometheus.yml"));
        fs::write(&file, config).unwrap();
        fs::create_dir_all(&data).unwrap();
        if let Some(openmetrics) = openmetrics {
            fs::write(&history, openmetrics).unwrap();
            let mut promtool = Command::new("promtool");
            passes(promtool.args(["tsdb", "create-blocks-from", "openmetrics"]).arg(&history).arg(&data));
        }
        // Prometheus cannot say which port it was given.
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", data.display()));
        command.arg(format!("--web.listen-address={address}"));
        let log = fs::File::create(dir.join("prometheus.log")).unwrap();
        let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let prometheus = Prometheus { child, address };
        let deadline = Instant::now() + Duration::from_secs(60);
        while probe(address, "/-/ready").ok() != Some(200) {
            let log = || fs::read_to_string(dir.join("prometheus.log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "{}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
        prometheus
    }

    /// `path` begins with a slash, or is empty.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}
