//! The figures of a check from Prometheus' HTTP API, with what it knows of how long they have lasted.

use http::Method;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::super::client::{Client, ClientError};
use crate::advise::check::{Lasting, Seen};
use crate::advise::thresholds::{Scope, THRESHOLDS, Threshold};

/// Between two evaluations of an expression within the time that a threshold asks for.
const STEP_SECONDS: u64 = 15;
/// Of these evaluations, those that must have had a value for a figure to count as sustained.
const COVERED_MIN: f64 = 0.8;

/// Every figure that Prometheus has of the nodes.
pub(super) async fn figures(client: &Client) -> Result<Vec<Seen>, ClientError> {
    let mut seen = Vec::new();
    for threshold in THRESHOLDS {
        if let Some(expr) = threshold.expr {
            seen.extend(figures_of(client, threshold, expr).await?);
        }
    }
    Ok(seen)
}

async fn figures_of(client: &Client, threshold: &Threshold, expr: &str) -> Result<Vec<Seen>, ClientError> {
    // Rows that last no time are judged by what is now.
    let (lowest, evaluations) = match threshold.minutes {
        0 => (expr.to_owned(), 0.0),
        minutes => {
            let range = format!("[{minutes}m:{STEP_SECONDS}s]");
            (format!("min_over_time(({expr}){range})"), (minutes * 60 / STEP_SECONDS) as f64)
        }
    };
    let lowest = query(client, &lowest).await?;
    let covered = match threshold.minutes {
        0 => Vec::new(),
        minutes => query(client, &format!("count_over_time(({expr})[{minutes}m:{STEP_SECONDS}s])")).await?,
    };
    let momentary = query(client, expr).await?;
    let values = momentary.iter().map(|(of, now)| {
        let enough = covered.iter().any(|(node, count)| node == of && *count >= COVERED_MIN * evaluations);
        let lasting = if enough || threshold.minutes == 0 { Lasting::Sustained } else { Lasting::Momentary };
        let lasted = lowest.iter().find(|(node, _)| node == of).map(|(_, value)| *value);
        // What has not been there long enough to last counts for what it is now.
        let value = if lasting == Lasting::Sustained { lasted.unwrap_or(*now) } else { *now };
        let of = if threshold.scope == Scope::Cluster { "cluster".to_owned() } else { of.clone() };
        Seen { signal: threshold.signal, of, value: Ok(value), lasting }
    });
    Ok(values.collect())
}

/// An instant query's vector: values by instance.
async fn query(client: &Client, expr: &str) -> Result<Vec<(String, f64)>, ClientError> {
    let path = format!("/api/v1/query?query={}", utf8_percent_encode(expr, NON_ALPHANUMERIC));
    let answer = client.ask(Method::GET, &path).await?;
    let samples = answer["data"]["result"].as_array().into_iter().flatten();
    Ok(samples.filter_map(sample).collect())
}

/// A quantile of nothing is not a number: nothing was asked, so nothing was slow.
fn sample(sample: &Value) -> Option<(String, f64)> {
    let of = sample["metric"]["instance"].as_str().unwrap_or("cluster").to_owned();
    let value: f64 = sample["value"][1].as_str()?.parse().ok()?;
    Some((of, if value.is_nan() { 0.0 } else { value }))
}
