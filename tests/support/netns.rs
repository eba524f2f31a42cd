//! Hosts on one machine: network namespaces joined by a bridge, each with an address of its own and a name that resolves
//! to all of them. Links between hosts can be cut in one direction or in both, and made to lose packets; the test itself sits
//! on the bridge and reaches every host whatever is cut between them.
//!
//! What belongs to a run carries its process id in the name. It goes with the value that holds it; what a killed run left
//! behind is cleared by the next.

use super::faults::skip;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

/// The name that resolves, inside every host, to the addresses of all of them.
pub(crate) const NAME: &str = "fastpaca.test";

/// What every namespace and link of these tests is called at the front; interface names have 15 bytes.
const PREFIX: &str = "fpt";

/// The port servers listen on, each on a host of its own.
const PORT: u16 = 4000;

const BRIDGE: &str = "bridge";

const TABLE: &str = "inet faults";

/// Networks of this process so far, so that tests side by side have one each.
static NETWORKS: AtomicU8 = AtomicU8::new(0);

/// A bridge and the hosts on it.
#[derive(Debug)]
pub(crate) struct Network {
    tag: String,
    subnet: [u8; 2],
    hosts: usize,
}

impl Network {
    /// `None`, with a word about it, where namespaces are not allowed.
    pub(crate) fn of(hosts: usize) -> Option<Network> {
        clear_stale();
        let number = NETWORKS.fetch_add(1, Ordering::Relaxed);
        let pid = std::process::id();
        // 10.64.0.0/10, by process and number: parallel runs on one machine should not meet.
        let subnet = [64 + (number & 63), (pid & 0xff) as u8];
        let network = Network { tag: format!("{PREFIX}{pid}-{}", letter(number)), subnet, hosts };
        if let Err(error) = network.build() {
            skip(&format!("network namespaces cannot be made here: {error}"));
            return None;
        }
        Some(network)
    }

    /// The bridge has a namespace to itself: where the machine's own firewall filters bridges, it knows nothing of this one.
    fn build(&self) -> Result<(), String> {
        let (switch, uplink) = (self.switch(), &self.tag);
        run(&["ip", "netns", "add", &switch])?;
        in_namespace(&switch, &["ip", "link", "add", BRIDGE, "type", "bridge"])?;
        in_namespace(&switch, &["ip", "link", "set", BRIDGE, "up"])?;
        run(&["ip", "link", "add", uplink, "type", "veth", "peer", "name", "uplink", "netns", &switch])?;
        in_namespace(&switch, &["ip", "link", "set", "uplink", "master", BRIDGE, "up"])?;
        run(&["ip", "addr", "add", &format!("{}/24", self.address(254)), "dev", uplink])?;
        run(&["ip", "link", "set", uplink, "up"])?;
        (0..self.hosts).try_for_each(|host| self.build_host(host))
    }

    fn build_host(&self, host: usize) -> Result<(), String> {
        let (switch, namespace, port) = (self.switch(), self.namespace(host), format!("host{host}"));
        run(&["ip", "netns", "add", &namespace])?;
        let pair = ["type", "veth", "peer", "name", "eth0", "netns", &namespace];
        in_namespace(&switch, &[&["ip", "link", "add", &port][..], &pair].concat())?;
        in_namespace(&switch, &["ip", "link", "set", &port, "master", BRIDGE, "up"])?;
        let address = format!("{}/24", self.ip(host));
        self.inside(host, &["ip", "addr", "add", &address, "dev", "eth0"])?;
        self.inside(host, &["ip", "link", "set", "eth0", "up"])?;
        self.inside(host, &["ip", "link", "set", "lo", "up"])?;
        self.nft(host, &format!("add table {TABLE}"))?;
        self.nft(host, &format!("add chain {TABLE} heard {{ type filter hook input priority 0; }}"))?;
        let names: String = (0..self.hosts).map(|host| format!("{} {NAME}\n", self.ip(host))).collect();
        let etc = self.etc(host);
        fs::create_dir_all(&etc).map_err(|error| error.to_string())?;
        fs::write(etc.join("hosts"), names).map_err(|error| error.to_string())
    }

    /// What a server is started under to live on this host.
    pub(crate) fn program(&self, host: usize) -> Vec<String> {
        ["ip", "netns", "exec", &self.namespace(host)].map(String::from).into()
    }

    pub(crate) fn socket(&self, host: usize) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.ip(host)), PORT)
    }

    /// `to` hears nothing more from `from`. What `to` says still arrives, unless that is cut too.
    pub(crate) fn cut(&self, from: usize, to: usize) {
        let rule = format!("add rule {TABLE} heard ip saddr {} drop", self.ip(from));
        self.nft(to, &rule).expect("rules can be added to a host that was built");
    }

    /// Every host loses this many of a hundred packets that come from another host; to lose all is to be cut.
    pub(crate) fn lose(&self, percent: u8) {
        assert!(percent < 100, "the rule takes no more than 99");
        for (to, from) in self.pairs() {
            let from = self.ip(from);
            let rule =
                format!("add rule {TABLE} heard ip saddr {from} numgen random mod 100 < {percent} drop");
            self.nft(to, &rule).expect("rules can be added to a host that was built");
        }
    }

    /// Delays what every host sends, the test's own links included. False where the kernel has no netem.
    pub(crate) fn delay(&self, delay_ms: u32, jitter_ms: u32) -> bool {
        let (delay, jitter) = (format!("{delay_ms}ms"), format!("{jitter_ms}ms"));
        let netem = ["tc", "qdisc", "replace", "dev", "eth0", "root", "netem", "delay", &delay, &jitter];
        (0..self.hosts).all(|host| self.inside(host, &netem).is_ok())
    }

    /// Nothing is cut, lost or delayed any more.
    pub(crate) fn heal(&self) {
        for host in 0..self.hosts {
            let rules = format!("flush chain {TABLE} heard");
            self.nft(host, &rules).expect("rules can be taken from a host that was built");
            // An error means that there was no delay.
            self.inside(host, &["tc", "qdisc", "del", "dev", "eth0", "root"]).ok();
        }
    }

    fn pairs(&self) -> impl Iterator<Item = (usize, usize)> {
        let hosts = self.hosts;
        (0..hosts).flat_map(move |to| (0..hosts).map(move |from| (to, from))).filter(|(to, from)| to != from)
    }

    fn namespace(&self, host: usize) -> String {
        format!("{}{}", self.tag, host + 1)
    }

    /// The namespace of the bridge.
    fn switch(&self) -> String {
        format!("{}0", self.tag)
    }

    fn ip(&self, host: usize) -> Ipv4Addr {
        self.address(host as u8 + 1)
    }

    fn address(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, self.subnet[0], self.subnet[1], last)
    }

    fn etc(&self, host: usize) -> PathBuf {
        PathBuf::from("/etc/netns").join(self.namespace(host))
    }

    fn nft(&self, host: usize, command: &str) -> Result<(), String> {
        self.inside(host, &["nft", command])
    }

    fn inside(&self, host: usize, command: &[&str]) -> Result<(), String> {
        in_namespace(&self.namespace(host), command)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        clear(&self.tag);
    }
}

/// A network of a process: 26 are enough for one run, and more would only share a name and fail to be made.
fn letter(number: u8) -> char {
    char::from(b'a' + number % 26)
}

/// Takes away what runs left behind that no longer live.
fn clear_stale() {
    for name in names("/run/netns").into_iter().chain(names("/etc/netns")).chain(names("/sys/class/net")) {
        let Some(rest) = name.strip_prefix(PREFIX) else { continue };
        let Some((pid, _)) = rest.split_once('-') else { continue };
        if !PathBuf::from(format!("/proc/{pid}")).exists() {
            clear(&format!("{PREFIX}{pid}-"));
        }
    }
}

fn clear(tag: &str) {
    for name in names("/run/netns").into_iter().filter(|name| name.starts_with(tag)) {
        run(&["ip", "netns", "del", &name]).ok();
    }
    for name in names("/etc/netns").into_iter().filter(|name| name.starts_with(tag)) {
        fs::remove_dir_all(PathBuf::from("/etc/netns").join(name)).ok();
    }
    for name in names("/sys/class/net").into_iter().filter(|name| name.starts_with(tag)) {
        run(&["ip", "link", "del", &name]).ok();
    }
}

fn names(dir: &str) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn in_namespace(namespace: &str, command: &[&str]) -> Result<(), String> {
    run(&[&["ip", "netns", "exec", namespace], command].concat())
}

fn run(command: &[&str]) -> Result<(), String> {
    let output = Command::new(command[0]).args(&command[1..]).output();
    let output = output.map_err(|error| format!("{}: {error}", command[0]))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{}: {}", command.join(" "), String::from_utf8_lossy(&output.stderr).trim())),
    }
}
