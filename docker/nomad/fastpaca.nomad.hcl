# Three nodes under Nomad, one a machine: nomad job run fastpaca.nomad.hcl
#
# Each client needs a host volume named "fastpaca" for user 10001, and the variable nomad/jobs/fastpaca the secrets:
#     client { host_volume "fastpaca" { path = "/var/lib/fastpaca" } }
#     nomad var put nomad/jobs/fastpaca api_key=... cluster_secret=...
# fastpaca.internal must resolve to the machines of all nodes, those that are not ready yet too.
variable "image" {
  type    = string
  default = "fastpaca"
}

variable "seed" {
  type    = string
  default = "fastpaca.internal:4000"
}

job "fastpaca" {
  datacenters = ["*"]
  type        = "service"

  # One node after the other, each once the one before is ready.
  update {
    max_parallel      = 1
    health_check      = "checks"
    min_healthy_time  = "10s"
    healthy_deadline  = "10m"
    progress_deadline = "15m"
  }

  group "node" {
    count = 3

    constraint {
      operator = "distinct_hosts"
      value    = "true"
    }

    # Data stay where they are: a node that is stopped is started on its own machine.
    volume "data" {
      type   = "host"
      source = "fastpaca"
    }

    network {
      port "http" {
        static = 4000
        to     = 4000
      }
    }

    service {
      name     = "fastpaca"
      port     = "http"
      provider = "nomad"

      check {
        type     = "http"
        path     = "/health/ready"
        interval = "5s"
        timeout  = "3s"
      }
    }

    task "fastpaca" {
      driver = "docker"
      user   = "10001:10001"

      # Longer than FASTPACA_SHUTDOWN_TIMEOUT_MS (25 s).
      kill_timeout = "30s"
      kill_signal  = "SIGTERM"
      # The service is taken away this long before the signal.
      shutdown_delay = "5s"

      config {
        image           = var.image
        ports           = ["http"]
        readonly_rootfs = true
        cap_drop        = ["all"]
        security_opt    = ["no-new-privileges"]
      }

      volume_mount {
        volume      = "data"
        destination = "/data"
      }

      env {
        # The machine's, not the allocation's: data and name belong together.
        FASTPACA_NODE_NAME      = "${node.unique.name}"
        FASTPACA_ADVERTISE_ADDR = "${attr.unique.network.ip-address}:4000"
        FASTPACA_CLUSTER_SEED   = var.seed
      }

      template {
        destination = "${NOMAD_SECRETS_DIR}/fastpaca.env"
        env         = true
        data        = <<EOT
{{ with nomadVar "nomad/jobs/fastpaca" }}
FASTPACA_API_KEY={{ .api_key }}
FASTPACA_CLUSTER_SECRET={{ .cluster_secret }}
{{ end }}
EOT
      }

      resources {
        cpu    = 2000
        memory = 3584
      }
    }
  }
}
