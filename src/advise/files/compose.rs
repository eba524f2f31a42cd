//! The compose file: every node as a service on one Docker engine.

use super::{PORT, Site, made_for, seeds};
use crate::advise::Plan;
use crate::advise::units::MIB;

pub(super) fn compose(plan: &Plan, site: &Site) -> String {
    let mut text = made_for(plan);
    text.push_str("# docker compose up -d\n");
    if plan.nodes > 1 {
        text.push_str(
            "# All nodes on one engine survive the loss of a process, not of the machine: a rehearsal. In production\n\
             # every node has a machine (fastpaca.service) or a pod (kubernetes.yaml) of its own.\n",
        );
    }
    text.push_str("services:\n");
    for number in 1..=plan.nodes {
        text.push_str(&service(plan, site, number));
    }
    text.push_str("\nvolumes:\n");
    for number in 1..=plan.nodes {
        text.push_str(&format!("  data-{number}: {{}}\n"));
    }
    text
}

fn name(number: u64) -> String {
    format!("fastpaca-{number}")
}

fn service(plan: &Plan, site: &Site, number: u64) -> String {
    let (container, name_here) = (&plan.container, name(number));
    let mut environment = format!("      FASTPACA_NODE_NAME: {name_here}\n      FASTPACA_DATA_DIR: /data\n");
    if plan.nodes > 1 {
        let names: Vec<String> = (1..=plan.nodes).map(name).collect();
        let seeds = seeds(names.iter().map(String::as_str));
        environment.push_str(&format!("      FASTPACA_CLUSTER_SEED: {seeds}\n"));
    }
    format!(
        "\n  {name_here}:\n    image: {image}\n    hostname: {name_here}\n    restart: unless-stopped\n    \
         user: \"10001:10001\"\n    read_only: true\n    cap_drop: [ALL]\n    \
         security_opt: [\"no-new-privileges:true\"]\n    env_file: .env\n    \
         environment:\n{environment}    ports:\n      - \"{published}:{PORT}\"\n    volumes:\n      - data-{number}:/data\n    \
         # Longer than FASTPACA_SHUTDOWN_TIMEOUT_MS (25 s).\n    stop_grace_period: 30s\n    \
         # No nofile here: the server takes the hard limit, and a daemon cannot give more than its own.\n    \
         sysctls:\n      net.core.somaxconn: {somaxconn}\n    \
         deploy:\n      resources:\n        limits:\n          cpus: \"{cpus}\"\n          memory: {memory}M\n        \
         reservations:\n          cpus: \"{cpus_reserved}\"\n          memory: {memory_reserved}M\n",
        image = site.image,
        published = u64::from(PORT) + number - 1,
        somaxconn = plan.kernel.somaxconn,
        cpus = container.cpu_limit,
        memory = container.memory_limit_bytes / MIB,
        cpus_reserved = container.cpu_reservation,
        memory_reserved = container.memory_reservation_bytes / MIB,
    )
}
