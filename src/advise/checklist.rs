//! What to have done before users come.

use super::Plan;
use super::rule::Rule;

pub(super) const BACKUP: Rule = Rule {
    id: "backup",
    title: "what to keep in case all nodes are lost",
    formula: "without an archive, `fastpaca backup` on a schedule, kept elsewhere, and one of them restored for a try; with one, the backups of its database",
    inputs: "--postgres",
    source: "docs/backup.md, docs/archive.md; Fastpaca: standard database backups where there is Postgres",
    departs: "Fastpaca: \"Snapshot the volume regularly (EBS/GCE disk snapshots)\". In a cluster a copy of one node's volume is no backup: it has forgotten votes and entries that \
              its node promised to others since, so that it is refused, and where it is too young to be told apart it may lose acknowledged writes (docs/cluster.md). \
              What can be gone back to are copies of all nodes' volumes, made while all were stopped, and of a node that is alone one atomic snapshot (docs/backup.md).",
};

/// In the order in which it is done.
pub(super) fn checklist(plan: &Plan) -> Vec<String> {
    let tier = &plan.tiers[1];
    let several = plan.nodes > 1;
    let mut items = vec![format!(
        "Machines: {} × {} vCPU, {} GiB, {} GB of SSD or NVMe that fastpaca has for itself",
        plan.nodes, tier.vcpu, tier.memory_gib, tier.disk_gb
    )];
    if several {
        items.push("Each node on hardware of its own, in one region, less than 5 ms apart; port 4000 open between all of them".into());
    }
    items.push("`fastpaca advise calibrate` on such a machine, and this plan once more with its file".into());
    items.push(
        "Kernel limits: 90-fastpaca.conf copied to /etc/sysctl.d, hard limit of open files raised".into(),
    );
    items.push(
        "FASTPACA_API_KEY set from a secret store, TLS at the load balancer or by FASTPACA_TLS_CERT".into(),
    );
    if several {
        items.push("FASTPACA_CLUSTER_SECRET, FASTPACA_CLUSTER_SEED and a FASTPACA_NODE_NAME for each node; `fastpaca cluster status` shows all of them, 0 groups without leader".into());
        items.push("Load balancer: asks /health/ready (open-source nginx cannot: nginx.conf goes by connections that fail), websockets and server-sent events pass through, read timeout above 90 s".into());
    }
    if plan.postgres.is_some() {
        items.push("Postgres: max_connections and shared_buffers as above, its own backups, and a look at fastpaca_raft_pending_flush_messages".into());
    } else {
        items.push(
            "Backups, not snapshots of volumes (advise explain backup): `fastpaca backup` on a schedule, kept elsewhere, and one of them restored into an empty cluster for a try"
                .into(),
        );
    }
    items.push("Prometheus scrapes /metrics of every node every 15 s; `fastpaca advise alerts` loaded, one alert provoked and received".into());
    items.push(format!(
        "Load test at {} appends and {} windows, then `fastpaca advise check`",
        super::units::rate(plan.load.appends_per_second_peak),
        super::units::rate(plan.load.windows_per_second_peak)
    ));
    if several {
        items.push("A node killed (kill -9) during the load test: clients retried with their idempotency keys, nothing was lost".into());
    }
    items.push(
        "Clients send an idempotency_key with every append, and resume streams from their cursor".into(),
    );
    items.push("`fastpaca advise check --prometheus URL` on a schedule, its exit code watched".into());
    items
}
