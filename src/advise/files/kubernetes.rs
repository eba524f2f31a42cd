//! Kubernetes: the nodes as a StatefulSet, with a headless service for each other and one for clients.

use super::{PORT, POSTGRES_URL, Site, common_settings, made_for};
use crate::advise::Plan;
use crate::advise::units::MIB;

/// The service by which nodes find each other.
const PEERS: &str = "fastpaca-nodes";

pub(super) fn manifests(plan: &Plan, site: &Site) -> String {
    let mut text = made_for(plan);
    text.push_str("# kubectl apply -f kubernetes.yaml\n");
    text.push_str(&secret(plan, site));
    text.push_str(&services());
    if plan.nodes > 1 {
        text.push_str(DISRUPTIONS);
    }
    text.push_str(&stateful_set(plan, site));
    text
}

fn secret(plan: &Plan, site: &Site) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Secret\nmetadata:\n  name: fastpaca\nstringData:\n  FASTPACA_API_KEY: \"{}\"\n",
        site.api_key
    );
    if plan.nodes > 1 {
        text.push_str(&format!("  FASTPACA_CLUSTER_SECRET: \"{}\"\n", site.cluster_secret));
    }
    if plan.postgres.is_some() {
        text.push_str(&format!("  # Your own.\n  FASTPACA_POSTGRES_URL: \"{POSTGRES_URL}\"\n"));
    }
    text
}

/// Nodes must find each other before any of them is ready.
fn services() -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata:\n  name: {PEERS}\nspec:\n  clusterIP: None\n  \
         publishNotReadyAddresses: true\n  selector:\n    app: fastpaca\n  ports:\n    - port: {PORT}\n\
         ---\napiVersion: v1\nkind: Service\nmetadata:\n  name: fastpaca\nspec:\n  selector:\n    app: fastpaca\n  \
         ports:\n    - port: {PORT}\n"
    )
}

const DISRUPTIONS: &str = "---\napiVersion: policy/v1\nkind: PodDisruptionBudget\nmetadata:\n  name: fastpaca\nspec:\n  \
     maxUnavailable: 1\n  selector:\n    matchLabels:\n      app: fastpaca\n";

fn stateful_set(plan: &Plan, site: &Site) -> String {
    let container = &plan.container;
    format!(
        "---\napiVersion: apps/v1\nkind: StatefulSet\nmetadata:\n  name: fastpaca\nspec:\n  serviceName: {PEERS}\n  \
         replicas: {nodes}\n  podManagementPolicy: Parallel\n  selector:\n    matchLabels:\n      app: fastpaca\n  \
         template:\n    metadata:\n      labels:\n        app: fastpaca\n    spec:\n      \
         # Longer than preStop and FASTPACA_SHUTDOWN_TIMEOUT_MS (25 s).\n      terminationGracePeriodSeconds: 40\n      \
         automountServiceAccountToken: false\n      \
         # Kubernetes' variables for services begin like settings.\n      enableServiceLinks: false\n{spread}      \
         securityContext:\n        fsGroup: 10001\n        fsGroupChangePolicy: OnRootMismatch\n        \
         runAsUser: 10001\n        runAsGroup: 10001\n        runAsNonRoot: true\n        \
         seccompProfile:\n          type: RuntimeDefault\n      \
         containers:\n        - name: fastpaca\n          image: {image}\n          \
         securityContext:\n            allowPrivilegeEscalation: false\n            \
         readOnlyRootFilesystem: true\n            capabilities:\n              drop: [ALL]\n          \
         lifecycle:\n            preStop:\n              \
         # The pod leaves its services while it still serves; then SIGTERM has it hand its leaderships over.\n              \
         sleep:\n                seconds: 5\n          \
         ports:\n            \
         - containerPort: {PORT}\n          envFrom:\n            - secretRef:\n                name: fastpaca\n          \
         env:\n{environment}          readinessProbe:\n            httpGet:\n              path: /health/ready\n              \
         port: {PORT}\n            periodSeconds: 2\n          livenessProbe:\n            httpGet:\n              \
         path: /health/live\n              port: {PORT}\n            initialDelaySeconds: 30\n            periodSeconds: 10\n          \
         resources:\n            limits:\n              cpu: \"{cpus}\"\n              memory: {memory}Mi\n            \
         requests:\n              cpu: \"{cpus_requested}\"\n              memory: {memory_requested}Mi\n          \
         volumeMounts:\n            - name: data\n              mountPath: /data\n  \
         volumeClaimTemplates:\n    - metadata:\n        name: data\n      spec:\n        \
         accessModes: [ReadWriteOnce]\n        resources:\n          requests:\n            storage: {disk}G\n",
        nodes = plan.nodes,
        spread = if plan.nodes > 1 { SPREAD } else { "" },
        image = site.image,
        environment = environment(plan),
        cpus = container.cpu_limit,
        memory = container.memory_limit_bytes / MIB,
        cpus_requested = container.cpu_reservation,
        memory_requested = container.memory_reservation_bytes / MIB,
        disk = plan.container.disk_gb,
    )
}

/// Two nodes on one machine are lost together.
const SPREAD: &str = "      affinity:\n        podAntiAffinity:\n          requiredDuringSchedulingIgnoredDuringExecution:\n            \
     - topologyKey: kubernetes.io/hostname\n              labelSelector:\n                matchLabels:\n                  \
     app: fastpaca\n";

fn environment(plan: &Plan) -> String {
    let mut text = String::from(
        "            - name: FASTPACA_NODE_NAME\n              valueFrom:\n                fieldRef:\n                  \
         fieldPath: metadata.name\n",
    );
    let mut add = |name: &str, value: &str| {
        text.push_str(&format!("            - name: {name}\n              value: \"{value}\"\n"));
    };
    add("FASTPACA_DATA_DIR", "/data");
    if plan.nodes > 1 {
        // The headless service resolves to all pods.
        add("FASTPACA_CLUSTER_SEED", &format!("{PEERS}:{PORT}"));
    }
    for (name, value) in common_settings(plan, &["FASTPACA_DATA_DIR"]) {
        add(name, value);
    }
    text
}
