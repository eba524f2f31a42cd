//! For a machine of its own: settings, the systemd unit, kernel limits.

use super::{POSTGRES_URL, Site, common_settings, made_for, seeds};
use crate::advise::Plan;
use crate::advise::units::MIB;

/// Where the unit looks for the settings.
const ENVIRONMENT_FILE: &str = "/etc/fastpaca/fastpaca.env";

pub(super) fn dotenv(plan: &Plan, site: &Site) -> String {
    let mut text = made_for(plan);
    text.push_str(
        "# Settings that are the same on all nodes. compose.yaml reads this file; for fastpaca.service copy it to\n",
    );
    text.push_str(&format!(
        "# {ENVIRONMENT_FILE} and add FASTPACA_NODE_NAME. It holds secrets: mode 0600.\n"
    ));
    text.push_str(&format!("FASTPACA_API_KEY={}\n", site.api_key));
    if plan.nodes > 1 {
        text.push_str(&format!("FASTPACA_CLUSTER_SECRET={}\n", site.cluster_secret));
        text.push_str(&format!("FASTPACA_CLUSTER_SEED={}\n", seeds(site.hosts.iter().map(String::as_str))));
    }
    if plan.postgres.is_some() {
        text.push_str(&format!("# Your own.\nFASTPACA_POSTGRES_URL={POSTGRES_URL}\n"));
    }
    for (name, value) in common_settings(plan, &[]) {
        text.push_str(&format!("{name}={value}\n"));
    }
    text
}

/// It reads and writes its data directory, and speaks TCP.
const HARDENING: &str = "NoNewPrivileges=yes
CapabilityBoundingSet=
UMask=0077
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
PrivateUsers=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RemoveIPC=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @keyring
SystemCallErrorNumber=EPERM
";

pub(super) fn unit(plan: &Plan, site: &Site) -> String {
    let memory_max = plan.container.memory_limit_bytes / MIB;
    format!(
        "{made}\
         # Copy to /etc/systemd/system/, and .env to {ENVIRONMENT_FILE} (mode 0600, with FASTPACA_NODE_NAME added).\n\
         [Unit]\nDescription=Fastpaca node\nAfter=network-online.target\nWants=network-online.target\n\n\
         [Service]\nType=exec\nExecStart={binary} serve\n\
         EnvironmentFile={ENVIRONMENT_FILE}\nEnvironment=FASTPACA_DATA_DIR=/var/lib/fastpaca\n\
         DynamicUser=yes\nStateDirectory=fastpaca\nStateDirectoryMode=0700\n\
         Restart=on-failure\nRestartSec=1\n\
         # Longer than FASTPACA_SHUTDOWN_TIMEOUT_MS (25 s), so that a stop hands over and checkpoints.\n\
         TimeoutStopSec=30\n\
         LimitNOFILE={files}\nMemoryMax={memory_max}M\n\
         {HARDENING}\n\
         [Install]\nWantedBy=multi-user.target\n",
        made = made_for(plan),
        binary = site.binary,
        files = plan.kernel.open_files,
    )
}

pub(super) fn sysctl(plan: &Plan) -> String {
    let mut text = made_for(plan);
    text.push_str(
        "# Copy to /etc/sysctl.d/ on every machine of a node or load balancer, then `sysctl --system`.\n",
    );
    for limit in &plan.kernel.sysctl {
        text.push_str(&format!("# {}\n{} = {}\n", limit.why, limit.key, limit.value));
    }
    text
}
