//! What machines cost: the plans of providers, each with where and when its price was seen.

use serde::{Deserialize, Serialize};

use super::rule::Rule;
use super::workload::BadInput;

/// The catalogue that is used when none is given.
const BUILT_IN: &str = include_str!("catalogue.toml");
/// The form of file that is understood.
const VERSION: u64 = 1;

/// Providers and their plans.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalogue {
    version: u64,
    #[serde(rename = "provider")]
    pub providers: Vec<Provider>,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Provider {
    pub name: String,
    pub title: String,
    pub currency: String,
    pub source: String,
    pub date: String,
    /// What a GB of disk costs beyond a plan's own.
    #[serde(default)]
    pub disk_gb_month: Option<f64>,
    #[serde(rename = "plan")]
    pub plans: Vec<MachinePlan>,
    /// A managed Postgres, where there is one.
    #[serde(default)]
    pub database: Option<MachinePlan>,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MachinePlan {
    pub name: String,
    pub vcpu: u64,
    pub memory_gib: u64,
    #[serde(default)]
    pub disk_gb: Option<u64>,
    pub price_low: f64,
    pub price_high: f64,
}

/// What a node must have.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Need {
    pub vcpu: u64,
    pub memory_gib: u64,
    pub disk_gb: u64,
}

/// A price a month, from low to high, and what is not in it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cost {
    pub provider: String,
    pub currency: String,
    pub low: f64,
    pub high: f64,
    /// What it is made of, such as `3 × CAX21`.
    pub of: String,
    /// What the catalogue has no price for.
    pub without: Vec<String>,
}

pub const COST: Rule = Rule {
    id: "topology.cost",
    title: "what a topology costs a month",
    formula: "nodes × the cheapest plan with vCPU and memory of the tier, + disk beyond the plan × disk_gb_month, + the database",
    inputs: "tier.*, --provider, --catalog",
    source: "the catalogue: Hetzner CAX from Orion (17 February 2026), AWS, DigitalOcean and VPS from StudyGuru (undated)",
    departs: "StudyGuru's totals include MySQL, Redis and a vector database (AWS $400 to $500); a Fastpaca node needs none of \
              them, so only the machines are counted. It gives one size a provider, which is larger than most nodes need. \
              Traffic, backups and load balancers are in no guide and not in the figure.",
};

impl Catalogue {
    /// The figures of the guides.
    pub fn built_in() -> Catalogue {
        Catalogue::parse("the built-in catalogue", BUILT_IN).expect("a test reads it")
    }

    /// From the text of a file.
    pub fn parse(file: &str, text: &str) -> Result<Catalogue, BadInput> {
        let refuse = |why: String| BadInput::File { file: file.to_owned(), why };
        let catalogue: Catalogue = toml::from_str(text)
            .map_err(|error| refuse(error.message().lines().collect::<Vec<_>>().join(" ")))?;
        if catalogue.version != VERSION {
            return Err(refuse(format!("version {}: expected {VERSION}", catalogue.version)));
        }
        for provider in &catalogue.providers {
            for plan in provider.plans.iter().chain(&provider.database) {
                let fits = plan.vcpu > 0 && plan.memory_gib > 0 && plan.price_low >= 0.0;
                if !fits || plan.price_high < plan.price_low || !plan.price_high.is_finite() {
                    return Err(refuse(format!(
                        "{}, {}: sizes above 0 and prices from low to high",
                        provider.name, plan.name
                    )));
                }
            }
        }
        Ok(catalogue)
    }

    /// Only this provider.
    pub fn only(mut self, provider: Option<&str>) -> Result<Catalogue, BadInput> {
        let Some(name) = provider else { return Ok(self) };
        let known: Vec<String> = self.providers.iter().map(|provider| provider.name.clone()).collect();
        self.providers.retain(|provider| provider.name == name);
        if self.providers.is_empty() {
            return Err(BadInput::value("provider", name, format!("one of {}", known.join(", "))));
        }
        Ok(self)
    }
}

impl Provider {
    /// The cheapest plan that has it all, or all but the disk.
    pub fn plan_for(&self, need: Need) -> Option<&MachinePlan> {
        let fits = |plan: &&MachinePlan| plan.vcpu >= need.vcpu && plan.memory_gib >= need.memory_gib;
        let whole = |plan: &&MachinePlan| plan.disk_gb.is_some_and(|disk| disk >= need.disk_gb);
        let cheapest = |one: &&MachinePlan, other: &&MachinePlan| one.price_high.total_cmp(&other.price_high);
        let plans = || self.plans.iter().filter(fits);
        plans().filter(whole).min_by(cheapest).or_else(|| plans().min_by(cheapest))
    }

    /// What so many such nodes cost, if a plan is large enough.
    pub fn cost(&self, nodes: u64, need: Need, with_database: bool) -> Option<Cost> {
        let plan = self.plan_for(need)?;
        let (count, mut without) = (nodes as f64, Vec::new());
        let (mut low, mut high) = (plan.price_low * count, plan.price_high * count);
        let mut of = if nodes == 1 { plan.name.clone() } else { format!("{nodes} × {}", plan.name) };
        let missing = need.disk_gb.saturating_sub(plan.disk_gb.unwrap_or(0));
        match self.disk_gb_month {
            Some(price) if missing > 0 => {
                low += price * missing as f64 * count;
                high += price * missing as f64 * count;
                of.push_str(&format!(", {missing} GB more disk each"));
            }
            None if missing > 0 => without.push(format!("{missing} GB more disk a node")),
            _ => {}
        }
        match &self.database {
            Some(database) if with_database => {
                low += database.price_low;
                high += database.price_high;
                of.push_str(&format!(", {}", database.name));
            }
            None if with_database => without.push("the database's own machine".to_owned()),
            _ => {}
        }
        Some(Cost { provider: self.name.clone(), currency: self.currency.clone(), low, high, of, without })
    }
}

impl Cost {
    /// `EUR 13.50`, `USD 150 to 200`.
    pub fn amount(&self) -> String {
        let money =
            |value: f64| if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.2}") };
        if self.low == self.high {
            return format!("{} {}", self.currency, money(self.low));
        }
        format!("{} {} to {}", self.currency, money(self.low), money(self.high))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_catalogue_has_the_plans_of_the_guides() {
        let catalogue = Catalogue::built_in();
        let names: Vec<&str> = catalogue.providers.iter().map(|provider| provider.name.as_str()).collect();
        assert_eq!(names, ["hetzner", "aws", "digitalocean", "vps"]);
        let hetzner = &catalogue.providers[0];
        let plan = |vcpu, memory_gib, disk_gb| {
            hetzner.plan_for(Need { vcpu, memory_gib, disk_gb }).map(|plan| plan.name.as_str())
        };
        assert_eq!(plan(2, 4, 40), Some("CAX11"));
        assert_eq!(plan(2, 5, 40), Some("CAX21"));
        assert_eq!(plan(2, 4, 100), Some("CAX31"));
        // No plan has the disk: the cheapest of what has the rest.
        assert_eq!(plan(2, 4, 1_000), Some("CAX11"));
        assert_eq!(plan(17, 4, 40), None);
    }

    #[test]
    fn costs_add_up() {
        let catalogue = Catalogue::built_in();
        let need = Need { vcpu: 4, memory_gib: 8, disk_gb: 80 };
        let hetzner = catalogue.providers[0].cost(3, need, true).unwrap();
        assert_eq!((hetzner.amount().as_str(), hetzner.of.as_str()), ("EUR 22.50", "3 × CAX21"));
        assert_eq!(hetzner.without, ["the database's own machine"]);
        let aws = catalogue.providers[1].cost(1, need, true).unwrap();
        assert_eq!(aws.amount(), "USD 300 to 350");
        assert_eq!(aws.without, ["80 GB more disk a node"]);
    }

    #[test]
    fn a_catalogue_of_ones_own_replaces_it() {
        let text = "version = 1\n[[provider]]\nname = \"x\"\ntitle = \"X\"\ncurrency = \"EUR\"\nsource = \"me\"\ndate = \"today\"\n\
                    disk_gb_month = 0.1\n[[provider.plan]]\nname = \"p\"\nvcpu = 4\nmemory_gib = 8\ndisk_gb = 10\nprice_low = 5\nprice_high = 6\n";
        let catalogue = Catalogue::parse("c.toml", text).unwrap();
        let cost =
            catalogue.providers[0].cost(2, Need { vcpu: 1, memory_gib: 1, disk_gb: 30 }, false).unwrap();
        assert_eq!((cost.low, cost.high, cost.without.len()), (14.0, 16.0, 0));
        assert!(
            catalogue.only(Some("y")).unwrap_err().to_string().contains("--provider y: expected one of x")
        );
        for bad in [
            "version = 2\nprovider = []",
            "version = 1",
            "nonsense",
            &text.replace("price_high = 6", "price_high = 4"),
        ] {
            assert!(Catalogue::parse("c.toml", bad).unwrap_err().to_string().starts_with("c.toml: "));
        }
    }
}
