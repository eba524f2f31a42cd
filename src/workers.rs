//! Runtimes whose workers are each kept on a core of their own (`docs/decisions/011-workers-stay-on-their-cores.md`).

use std::io;
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tokio::runtime::{Builder, Runtime};
use tracing::{info, warn};

/// A runtime of `threads` workers, called `name` and their number; 0 = one per core. With `pin` they are kept on their
/// cores, if there are as many cores as workers.
pub(crate) fn runtime(name: &'static str, threads: usize, pin: bool) -> io::Result<Runtime> {
    let threads = match threads {
        0 => thread::available_parallelism().map_or(1, NonZero::get),
        some => some,
    };
    let mut builder = Builder::new_multi_thread();
    // Called in the order in which threads are made, the workers first; they may start in another.
    let made = AtomicUsize::new(0);
    builder.worker_threads(threads).enable_all().thread_name_fn(move || match made.fetch_add(1, Relaxed) {
        number if number < threads => format!("{name}-{number}"),
        _ => format!("{name}-blocking"),
    });
    if pin && let Some(cores) = cores_for(threads) {
        info!(event = "workers_pinned", name, workers = threads);
        builder.on_thread_start(move || place(&cores));
    }
    builder.build()
}

/// The cores that the process may use, if they are as many as these workers. Else a share of a machine's cores may be given as
/// time on any of them, and all that are given such a share would choose the same ones. A lone worker has nothing to be
/// kept from.
fn cores_for(workers: usize) -> Option<CpuSet> {
    // Refused on a machine of more cores than a set holds.
    let cores = sched_getaffinity(None).ok()?;
    if workers < 2 || cores.count() as usize != workers {
        return None;
    }
    match sched_setaffinity(None, &cores) {
        Ok(()) => Some(cores),
        Err(error) => {
            warn!(event = "workers_not_pinned", %error);
            None
        }
    }
}

/// Puts the calling thread on the core of its number, or on all if its name has none: it begins where the thread that made it
/// is kept.
fn place(cores: &CpuSet) {
    let thread = thread::current();
    let number = thread.name().and_then(|name| name.rsplit('-').next()?.parse().ok());
    let own = number.and_then(|number| numbers(cores).nth(number)).map(|core| {
        let mut own = CpuSet::new();
        own.set(core);
        own
    });
    // A core that is gone since leaves the thread where the system puts it.
    let _ = sched_setaffinity(None, own.as_ref().unwrap_or(cores));
}

fn numbers(cores: &CpuSet) -> impl Iterator<Item = usize> {
    (0..CpuSet::MAX_CPU).filter(|&number| cores.is_set(number))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Barrier};

    use super::*;

    fn cores() -> Vec<usize> {
        numbers(&sched_getaffinity(None).unwrap()).collect()
    }

    /// The cores of each worker, asked for in all of them at once; and those of a thread for blocking work made by each.
    fn cores_of_threads(threads: usize, pin: bool) -> Vec<(Vec<usize>, Vec<usize>)> {
        let runtime = runtime("test", threads, pin).unwrap();
        let all_there = Arc::new(Barrier::new(threads));
        let asked: Vec<_> = (0..threads)
            .map(|_| {
                let all_there = Arc::clone(&all_there);
                runtime.spawn(async move {
                    all_there.wait();
                    (cores(), tokio::task::spawn_blocking(cores).await.unwrap())
                })
            })
            .collect();
        runtime.block_on(async {
            let mut seen = Vec::new();
            for asked in asked {
                seen.push(asked.await.unwrap());
            }
            seen.sort();
            seen
        })
    }

    #[test]
    fn each_worker_has_a_core_and_blocking_work_has_all() {
        let all = cores();
        if all.len() < 2 {
            return;
        }
        let expected: Vec<_> = all.iter().map(|&core| (vec![core], all.clone())).collect();
        assert_eq!(cores_of_threads(all.len(), true), expected);
    }

    #[test]
    fn workers_roam_where_they_are_more_or_fewer_than_cores_or_told_to() {
        let all = cores();
        let roaming = |threads| vec![(all.clone(), all.clone()); threads];
        assert_eq!(cores_of_threads(all.len() + 1, true), roaming(all.len() + 1));
        assert_eq!(cores_of_threads(1, true), roaming(1));
        assert_eq!(cores_of_threads(all.len(), false), roaming(all.len()));
    }
}
