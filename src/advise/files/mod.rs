//! Files that put a plan into practice: what they say comes from the plan alone.
//!
//! | file | for |
//! | --- | --- |
//! | `.env` | settings, for all of the following |
//! | `compose.yaml` | all nodes on one Docker engine: one node for good, several as a rehearsal |
//! | `fastpaca.service` | a node on a machine of its own, under systemd |
//! | `90-fastpaca.conf` | kernel limits of a node's machine |
//! | `nginx.conf` | the load balancer in front |
//! | `kubernetes.yaml` | the nodes as a StatefulSet |

mod balancer;
mod compose;
mod kubernetes;
mod machine;

use super::Plan;

/// What the plan does not know.
#[derive(Debug, Clone)]
pub struct Site {
    /// The container image.
    pub image: String,
    /// Where the binary lies on machines without containers.
    pub binary: String,
    /// The nodes, by names or addresses that they and the load balancer can resolve.
    pub hosts: Vec<String>,
    pub api_key: String,
    pub cluster_secret: String,
}

/// A file to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub name: &'static str,
    pub text: String,
    /// Nobody but its owner may read it.
    pub is_secret: bool,
}

/// The port of the one listener.
const PORT: u16 = 4000;

/// Where the archive is, nobody but its owner knows.
const POSTGRES_URL: &str = "postgres://USER:PASSWORD@HOST:5432/DATABASE";

/// Everything that `--write` writes.
pub fn files(plan: &Plan, site: &Site) -> Vec<File> {
    let public = |name, text| File { name, text, is_secret: false };
    let secret = |name, text| File { name, text, is_secret: true };
    vec![
        secret(".env", machine::dotenv(plan, site)),
        public("compose.yaml", compose::compose(plan, site)),
        public("fastpaca.service", machine::unit(plan, site)),
        public("90-fastpaca.conf", machine::sysctl(plan)),
        public("nginx.conf", balancer::nginx(plan, site)),
        secret("kubernetes.yaml", kubernetes::manifests(plan, site)),
    ]
}

/// The first line of each file.
fn made_for(plan: &Plan) -> String {
    format!(
        "# Made by `fastpaca advise plan --write` for {} users ({} active at once), {} node{}.\n",
        plan.workload.users,
        plan.load.active_users.ceil(),
        plan.nodes,
        if plan.nodes == 1 { "" } else { "s" }
    )
}

/// The settings that are the same on all nodes, without those that a deployment says in its own way.
fn common_settings<'a>(plan: &'a Plan, but: &'a [&'a str]) -> impl Iterator<Item = (&'a str, &'a str)> {
    let settings = plan.settings.iter().filter(|setting| setting.value != super::settings::PER_SITE);
    settings.map(|setting| (setting.name, setting.value.as_str())).filter(|(name, _)| !but.contains(name))
}

/// `HOST:4000` of each.
fn seeds<'a>(hosts: impl Iterator<Item = &'a str>) -> String {
    let seeds: Vec<String> = hosts.map(|host| format!("{}:{PORT}", bracketed(host))).collect();
    seeds.join(",")
}

/// An IPv6 address needs brackets in front of a port.
fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}
