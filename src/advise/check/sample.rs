//! Figures from two looks at a node's `/metrics`, a while apart, and one at `/v1/cluster`.

use std::collections::BTreeMap;

use super::{Lasting, Seen};
use crate::advise::thresholds::Signal;

/// What `/metrics` said: values by series, as written (`name` or `name{label="value"}`).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Look(BTreeMap<String, f64>);

impl Look {
    /// From Prometheus text. What is no sample is passed over.
    pub fn parse(text: &str) -> Look {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let samples = lines.filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            Some((series.to_owned(), value.parse().ok()?))
        });
        Look(samples.collect())
    }

    fn get(&self, series: &str) -> Result<f64, String> {
        self.0.get(series).copied().ok_or_else(|| format!("the node shows no {series}"))
    }

    /// The counts of a histogram's buckets by upper bound.
    fn buckets(&self, name: &str) -> Vec<(f64, f64)> {
        let prefix = format!("{name}_bucket{{le=\"");
        let bound = |series: &str| series.strip_prefix(&prefix)?.strip_suffix("\"}")?.parse::<f64>().ok();
        let mut buckets: Vec<(f64, f64)> =
            self.0.iter().filter_map(|(series, count)| Some((bound(series)?, *count))).collect();
        buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
        buckets
    }
}

/// Two looks at a node.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeLook {
    pub name: String,
    pub before: Look,
    pub after: Look,
    pub seconds: f64,
}

impl NodeLook {
    fn grown(&self, series: &str) -> Result<f64, String> {
        // A restart in between begins at zero again.
        Ok((self.after.get(series)? - self.before.get(series).unwrap_or(0.0)).max(0.0))
    }

    fn ratio(&self, part: &str, whole: &str) -> Result<f64, String> {
        let whole_value = self.after.get(whole)?;
        if whole_value > 0.0 {
            Ok(self.after.get(part)? / whole_value)
        } else {
            Err(format!("{whole} is unknown to the node"))
        }
    }

    /// As `histogram_quantile`: linear within the bucket. 0 where nothing was observed.
    fn quantile(&self, name: &str, quantile: f64) -> Result<f64, String> {
        let before: BTreeMap<u64, f64> =
            self.before.buckets(name).into_iter().map(|(bound, count)| (bound.to_bits(), count)).collect();
        let after = self.after.buckets(name);
        let counts: Vec<(f64, f64)> = after
            .iter()
            .map(|(bound, count)| (*bound, (count - before.get(&bound.to_bits()).unwrap_or(&0.0)).max(0.0)))
            .collect();
        let total = counts.last().ok_or_else(|| format!("the node shows no {name}"))?.1;
        if total == 0.0 {
            return Ok(0.0);
        }
        let rank = quantile * total;
        let (mut low, mut below) = (0.0, 0.0);
        for (bound, count) in counts {
            if count >= rank {
                let within = if count > below { (rank - below) / (count - below) } else { 1.0 };
                return Ok(if bound.is_finite() { low + (bound - low) * within } else { low });
            }
            (low, below) = (bound, count);
        }
        Ok(low)
    }

    fn value(&self, signal: Signal) -> Option<Result<f64, String>> {
        Some(match signal {
            Signal::Memory => self.ratio("process_resident_memory_bytes", "fastpaca_available_memory_bytes"),
            Signal::Cpu => self.cpu(),
            Signal::AppendLatencyP95 => self.quantile("fastpaca_append_latency_ms", 0.95),
            Signal::WindowLatencyP95 => self.quantile("fastpaca_window_latency_ms", 0.95),
            Signal::FsyncP99 => {
                self.quantile("fastpaca_journal_fsync_seconds", 0.99).map(|seconds| seconds * 1e3)
            }
            Signal::DiskUsed => {
                self.ratio("fastpaca_disk_free_bytes", "fastpaca_disk_size_bytes").map(|free| 1.0 - free)
            }
            Signal::DiskFull => self.after.get("fastpaca_disk_full"),
            Signal::Streams => self.ratio("fastpaca_streams", "fastpaca_stream_limit"),
            Signal::Connections => self.ratio("fastpaca_connections", "fastpaca_connection_limit"),
            Signal::ArchiveBacklog => self.after.get("fastpaca_raft_pending_flush_messages"),
            Signal::ArchiveStopped => self.after.get("fastpaca_archive_stopped_conversations"),
            // Trims are minutes apart: between two looks there would be none.
            Signal::TrimsRefused => self.after.get("fastpaca_trims_refused_total"),
            Signal::Errors => self.errors(),
            Signal::Overload => self.overload(),
            Signal::GroupsWithoutLeader
            | Signal::LinksMissing
            | Signal::RoundTrip
            | Signal::LeaderImbalance => return None,
        })
    }

    fn cpu(&self) -> Result<f64, String> {
        let cores = self.after.get("fastpaca_available_cores")?;
        Ok(self.grown("process_cpu_seconds_total")? / self.seconds / cores)
    }

    fn errors(&self) -> Result<f64, String> {
        let of = |class: &str| self.grown(&format!("fastpaca_http_requests_total{{status=\"{class}\"}}"));
        let all = of("2xx")? + of("3xx")? + of("4xx")? + of("5xx")?;
        Ok(if all > 0.0 { of("5xx")? / all } else { 0.0 })
    }

    fn overload(&self) -> Result<f64, String> {
        let refused = self.grown("fastpaca_overloaded_total")?
            + self.grown("fastpaca_rate_limited_total")?
            + self.grown("fastpaca_connections_refused_total")?;
        Ok(refused / self.seconds)
    }
}

/// Every figure of a node that two looks tell.
pub fn node_figures(node: &NodeLook) -> Vec<Seen> {
    let figure = |signal: Signal| {
        let value = node.value(signal)?;
        Some(Seen { signal, of: node.name.clone(), value, lasting: Lasting::Momentary })
    };
    crate::advise::thresholds::THRESHOLDS.iter().filter_map(|threshold| figure(threshold.signal)).collect()
}

/// The figures of the cluster, from the answer of `/v1/cluster`.
pub fn cluster_figures(status: &serde_json::Value) -> Vec<Seen> {
    let cluster =
        |signal, value| Seen { signal, of: "cluster".to_owned(), value, lasting: Lasting::Momentary };
    let nodes: Vec<&serde_json::Value> = status["nodes"].as_array().into_iter().flatten().collect();
    // As the alert counts: the cluster's own group, which comes behind those of conversations, is one of them.
    let own = status["groups"].as_u64().map(|number| number.to_string());
    let own_is_led = own.is_some_and(|number| status["leaders_by_group"][number].is_string());
    let groups = status["groups_without_leader"]
        .as_f64()
        .map(|of_conversations| of_conversations + f64::from(u8::from(!own_is_led)))
        .ok_or_else(|| "no groups_without_leader in /v1/cluster".to_owned());
    let mut seen = vec![cluster(Signal::GroupsWithoutLeader, groups)];
    let down = nodes.iter().filter(|node| node["link"] == "down").count();
    seen.push(cluster(Signal::LinksMissing, Ok(down as f64)));
    // Of the node that was asked, to the one furthest away. None is known where it is alone.
    let slowest_us = nodes.iter().filter_map(|node| node["rtt_us"].as_f64()).fold(0.0, f64::max);
    seen.push(cluster(Signal::RoundTrip, Ok(slowest_us / 1e3)));
    // As the alert sees it: a node that is down tells Prometheus nothing, one that is draining tells of no leaders.
    let leaders: Vec<f64> = nodes
        .iter()
        .filter(|node| node["link"] != "down")
        .filter_map(|node| node["leaders"].as_f64())
        .collect();
    let mean = leaders.iter().sum::<f64>() / leaders.len().max(1) as f64;
    let most = leaders.iter().copied().fold(0.0, f64::max);
    seen.push(cluster(Signal::LeaderImbalance, Ok(if mean > 0.0 { most / mean } else { 0.0 })));
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(before: &str, after: &str) -> NodeLook {
        NodeLook { name: "n".into(), before: Look::parse(before), after: Look::parse(after), seconds: 10.0 }
    }

    fn value(node: &NodeLook, signal: Signal) -> Result<f64, String> {
        node.value(signal).unwrap()
    }

    #[test]
    fn rates_and_ratios() {
        let node = looks(
            "process_cpu_seconds_total 1\nfastpaca_overloaded_total 0\nfastpaca_rate_limited_total 0\nfastpaca_connections_refused_total 5\n",
            "# HELP x y\nprocess_cpu_seconds_total 11\nfastpaca_available_cores 2\nfastpaca_streams 5\nfastpaca_stream_limit 10\n\
             fastpaca_disk_free_bytes 25\nfastpaca_disk_size_bytes 100\nfastpaca_overloaded_total 20\nfastpaca_rate_limited_total 0\n\
             fastpaca_connections_refused_total 5\nprocess_resident_memory_bytes 1\nfastpaca_available_memory_bytes 0\n",
        );
        assert_eq!(value(&node, Signal::Cpu), Ok(0.5));
        assert_eq!(value(&node, Signal::Streams), Ok(0.5));
        assert_eq!(value(&node, Signal::DiskUsed), Ok(0.75));
        assert_eq!(value(&node, Signal::Overload), Ok(2.0));
        assert!(value(&node, Signal::Memory).unwrap_err().contains("fastpaca_available_memory_bytes"));
        assert!(value(&node, Signal::DiskFull).unwrap_err().contains("fastpaca_disk_full"));
    }

    #[test]
    fn quantiles_are_of_what_came_in_between() {
        let bucket =
            |le: &str, count: u64| format!("fastpaca_append_latency_ms_bucket{{le=\"{le}\"}} {count}\n");
        let before = [bucket("1", 1_000), bucket("10", 1_000), bucket("+Inf", 1_000)].concat();
        let after = [bucket("1", 1_000), bucket("10", 1_100), bucket("+Inf", 1_100)].concat();
        let p95 = value(&looks(&before, &after), Signal::AppendLatencyP95).unwrap();
        assert!((p95 - 9.55).abs() < 1e-9, "{p95}");
        assert_eq!(value(&looks(&after, &after), Signal::AppendLatencyP95), Ok(0.0));
        let beyond = [bucket("1", 0), bucket("10", 0), bucket("+Inf", 5)].concat();
        assert_eq!(value(&looks("", &beyond), Signal::AppendLatencyP95), Ok(10.0));
    }

    #[test]
    fn the_cluster_is_judged_by_its_own_answer() {
        let node = |state: &str, link: &str, leaders: u64| {
            let rtt_us = (link == "up").then_some(leaders * 10);
            serde_json::json!({"link": link, "leaders": leaders, "state": state, "rtt_us": rtt_us})
        };
        let values = |nodes: [serde_json::Value; 3]| {
            let leaders = serde_json::json!({"256": "n1"});
            let status = serde_json::json!(
                {"groups": 256, "groups_without_leader": 3, "leaders_by_group": leaders, "nodes": nodes}
            );
            let figures = cluster_figures(&status).into_iter();
            figures.map(|seen| seen.value.unwrap()).collect::<Vec<f64>>()
        };
        let lost = values([node("active", "up", 150), node("active", "up", 100), node("active", "down", 0)]);
        assert_eq!(lost, [3.0, 1.0, 1.5, 1.2]);
        let drained =
            values([node("active", "up", 150), node("active", "up", 90), node("draining", "up", 0)]);
        assert_eq!(drained, [3.0, 0.0, 1.5, 1.875]);
        assert!(cluster_figures(&serde_json::json!({}))[0].value.is_err());
        let without_own =
            serde_json::json!({"groups": 256, "groups_without_leader": 0, "leaders_by_group": {}});
        assert_eq!(cluster_figures(&without_own)[0].value, Ok(1.0));
    }
}
