//! The load balancer: a whole nginx configuration.

use super::{PORT, Site, bracketed, made_for};
use crate::advise::Plan;

pub(super) fn nginx(plan: &Plan, site: &Site) -> String {
    let servers: Vec<String> = site
        .hosts
        .iter()
        .map(|host| format!("        server {}:{PORT} max_fails=2 fail_timeout=5s;\n", bracketed(host)))
        .collect();
    format!(
        "{made}\
         # Terminate TLS here or in front. Nodes must not have this address among their seeds.\n\
         # Open-source nginx does not ask /health/ready: a node is left out while connections to it fail or time out, not\n\
         # while it answers without being ready, as when it is cut off from the others. A balancer that asks notices both.\n\
         worker_processes auto;\nworker_rlimit_nofile {files};\n\n\
         events {{\n    worker_connections {connections};\n}}\n\n\
         http {{\n    access_log off;\n    server_tokens off;\n\n    \
         map $http_upgrade $connection_upgrade {{\n        default upgrade;\n        \"\" \"\";\n    }}\n\n    \
         upstream fastpaca {{\n        least_conn;\n{servers}        keepalive {keepalive};\n    }}\n\n    \
         server {{\n        listen 80 backlog={backlog};\n        client_max_body_size {body};\n\n        \
         location / {{\n            proxy_pass http://fastpaca;\n            proxy_http_version 1.1;\n            \
         proxy_set_header Host $host;\n            proxy_set_header Upgrade $http_upgrade;\n            \
         proxy_set_header Connection $connection_upgrade;\n            \
         # A write is sent on only if its node was never reached; what may have been applied is the client's to repeat,\n            \
         # with its idempotency key. So is a 503, after Retry-After: many are about one conversation, at every node.\n            \
         proxy_next_upstream error timeout;\n            \
         proxy_next_upstream_tries 2;\n            proxy_connect_timeout 2s;\n            \
         # Streams: frames are passed on as they come; a node pings every 30 s.\n            \
         proxy_buffering off;\n            proxy_request_buffering off;\n            proxy_read_timeout 100s;\n            \
         proxy_send_timeout 100s;\n        }}\n    }}\n}}\n",
        made = made_for(plan),
        files = plan.kernel.open_files,
        connections = plan.kernel.balancer_connections,
        servers = servers.concat(),
        keepalive = 64,
        backlog = plan.kernel.somaxconn,
        body = plan.kernel.body_max_bytes,
    )
}
