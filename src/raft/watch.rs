//! A watch channel for openraft, which tells every advance of a log, a commit and its metrics by one: several at each step of
//! every group.
//!
//! Most of the time nobody waits for the news, or one or two tasks do, which wait for those of other channels besides. So
//! telling nobody is one atomic load, and whoever waits stays on the list until there are news: waiting again, with another
//! channel's news in between, changes nothing. What that saves is in `docs/benchmarks.md`.

use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use openraft::OptionalSend;
use openraft::rt::watch::{RecvError, SendError, Watch, WatchReceiver, WatchSender};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};

/// The kind of channel; see [`Sender`] and [`Receiver`].
pub(crate) struct WatchChannel;

impl Watch for WatchChannel {
    type Sender<T: OptionalSend + Sync> = Sender<T>;
    type Receiver<T: OptionalSend + Sync> = Receiver<T>;
    type Ref<'a, T: OptionalSend + 'a> = RwLockReadGuard<'a, T>;

    fn channel<T: OptionalSend + Sync>(init: T) -> (Sender<T>, Receiver<T>) {
        let shared = Arc::new(Shared {
            value: RwLock::new(init),
            version: AtomicU64::new(0),
            senders: AtomicUsize::new(1),
            receivers: AtomicUsize::new(0),
            anybody: AtomicBool::new(false),
            waiting: Mutex::default(),
        });
        let receiver = Receiver::new(&shared, 0);
        (Sender(shared), receiver)
    }
}

struct Shared<T> {
    value: RwLock<T>,
    /// Changes with the value, while that is locked.
    version: AtomicU64,
    senders: AtomicUsize,
    receivers: AtomicUsize,
    /// Whether `waiting` has any.
    anybody: AtomicBool,
    waiting: Mutex<Waiting>,
}

/// Tasks to be woken at the next news. A few may have lost interest since; being woken once for nothing does no harm.
#[derive(Default)]
struct Waiting {
    /// Apart, so that a single task, as there mostly is, takes no allocation.
    first: Option<Waker>,
    others: Vec<Waker>,
}

/// Above so many on the list, whoever loses interest is taken off: requests that give up must not pile up here.
const FEW: usize = 8;

impl Waiting {
    fn add(&mut self, waker: &Waker) {
        match &self.first {
            None => self.first = Some(waker.clone()),
            Some(first) if first.will_wake(waker) => {}
            Some(_) if self.others.iter().any(|other| other.will_wake(waker)) => {}
            Some(_) => self.others.push(waker.clone()),
        }
    }
}

impl<T> Shared<T> {
    /// To be called after what is news: either the waiting task sees it, or this sees the task.
    fn wake(&self) {
        if !self.anybody.load(Ordering::SeqCst) {
            return;
        }
        let Waiting { first, others } = {
            let mut waiting = self.waiting.lock();
            self.anybody.store(false, Ordering::SeqCst);
            mem::take(&mut *waiting)
        };
        // Not under the lock: what a waker drops may come back here.
        first.into_iter().chain(others).for_each(Waker::wake);
    }

    /// Whether the list is so long that the task must be taken off when it loses interest.
    fn wait(&self, waker: &Waker) -> bool {
        let mut waiting = self.waiting.lock();
        waiting.add(waker);
        self.anybody.store(true, Ordering::SeqCst);
        waiting.others.len() >= FEW
    }

    fn forget(&self, waker: &Waker) {
        let mut waiting = self.waiting.lock();
        let place = waiting.others.iter().position(|other| other.will_wake(waker));
        let forgotten = place.map(|place| waiting.others.swap_remove(place));
        drop(waiting);
        // The task may wait for this channel at another place, too, and has to say so again.
        forgotten.into_iter().for_each(Waker::wake);
    }
}

pub(crate) struct Sender<T>(Arc<Shared<T>>);

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.senders.fetch_add(1, Ordering::Relaxed);
        Self(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.0.senders.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.wake();
        }
    }
}

impl<T: OptionalSend + Sync> WatchSender<WatchChannel, T> for Sender<T> {
    fn send(&self, value: T) -> Result<(), SendError<T>> {
        if self.0.receivers.load(Ordering::Relaxed) == 0 {
            return Err(SendError(value));
        }
        let mut value = value;
        self.send_if_modified(|old| {
            mem::swap(old, &mut value);
            true
        });
        Ok(())
    }

    fn send_if_modified<F>(&self, modify: F) -> bool
    where
        F: FnOnce(&mut T) -> bool,
    {
        let mut value = self.0.value.write();
        if !modify(&mut value) {
            return false;
        }
        self.0.version.fetch_add(1, Ordering::SeqCst);
        drop(value);
        self.0.wake();
        true
    }

    fn borrow_watched(&self) -> RwLockReadGuard<'_, T> {
        self.0.value.read()
    }

    fn subscribe(&self) -> Receiver<T> {
        Receiver::new(&self.0, self.0.version.load(Ordering::SeqCst))
    }
}

pub(crate) struct Receiver<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
}

impl<T> Receiver<T> {
    fn new(shared: &Arc<Shared<T>>, seen: u64) -> Self {
        shared.receivers.fetch_add(1, Ordering::Relaxed);
        Self { shared: shared.clone(), seen }
    }

    /// What there is to say without waiting.
    fn news(&mut self) -> Option<Result<(), RecvError>> {
        let version = self.shared.version.load(Ordering::SeqCst);
        if version != self.seen {
            self.seen = version;
            return Some(Ok(()));
        }
        (self.shared.senders.load(Ordering::SeqCst) == 0).then_some(Err(RecvError(())))
    }
}

/// Waits for news.
struct Changed<'a, T> {
    receiver: &'a mut Receiver<T>,
    /// Of the task that is to be taken off the list.
    listed: Option<Waker>,
}

impl<T> Future for Changed<'_, T> {
    type Output = Result<(), RecvError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(news) = self.receiver.news() {
            return Poll::Ready(news);
        }
        if self.receiver.shared.wait(cx.waker()) {
            self.listed = Some(cx.waker().clone());
        }
        // What was sent before the task was on the list did not wake it.
        self.receiver.news().map_or(Poll::Pending, Poll::Ready)
    }
}

impl<T> Drop for Changed<'_, T> {
    fn drop(&mut self) {
        if let Some(waker) = self.listed.take() {
            self.receiver.shared.forget(&waker);
        }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self::new(&self.shared, self.seen)
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.shared.receivers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<T: OptionalSend + Sync> WatchReceiver<WatchChannel, T> for Receiver<T> {
    async fn changed(&mut self) -> Result<(), RecvError> {
        Changed { receiver: self, listed: None }.await
    }

    fn borrow_watched(&self) -> RwLockReadGuard<'_, T> {
        self.shared.value.read()
    }

    fn borrow_and_update(&mut self) -> RwLockReadGuard<'_, T> {
        let value = self.shared.value.read();
        self.seen = self.shared.version.load(Ordering::SeqCst);
        value
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::time::Duration;

    use futures_util::poll;

    use super::*;

    const LAST: u64 = 200;

    /// Waits for the last value of either channel, as tasks of openraft do: for whichever has news first.
    async fn until_last(mut one: Receiver<u64>, mut other: Receiver<u64>) -> (u64, u64) {
        loop {
            let seen = (*one.borrow_watched(), *other.borrow_watched());
            if seen == (LAST, LAST) {
                return seen;
            }
            tokio::select! {
                changed = one.changed() => changed.unwrap(),
                changed = other.changed() => changed.unwrap(),
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn no_news_are_missed_by_whoever_waits_for_two_channels() {
        for _ in 0..100 {
            let ((one, first), (other, second)) = (WatchChannel::channel(0), WatchChannel::channel(0));
            let waiting: Vec<_> =
                (0..4).map(|_| tokio::spawn(until_last(first.clone(), second.clone()))).collect();
            let sends = [one.clone(), other.clone()].map(|sender| {
                tokio::task::spawn_blocking(move || (1..=LAST).for_each(|value| sender.send(value).unwrap()))
            });
            for send in sends {
                send.await.unwrap();
            }
            for task in waiting {
                let seen = tokio::time::timeout(Duration::from_secs(60), task).await.expect("it is woken");
                assert_eq!(seen.unwrap(), (LAST, LAST));
            }
        }
    }

    #[tokio::test]
    async fn the_last_sender_takes_the_channel_with_it() {
        let (sender, mut receiver) = WatchChannel::channel(0);
        let other = sender.clone();
        drop(sender);
        other.send(1).unwrap();
        let waiting = tokio::spawn(async move { (receiver.changed().await, receiver.changed().await) });
        tokio::task::yield_now().await;
        drop(other);
        assert!(matches!(waiting.await.unwrap(), (Ok(()), Err(_))));
    }

    #[tokio::test]
    async fn a_task_is_on_the_list_once_and_those_that_give_up_do_not_pile_up() {
        let (sender, receiver) = WatchChannel::channel(0);
        let listed = || {
            let waiting = sender.0.waiting.lock();
            waiting.first.iter().len() + waiting.others.len()
        };
        for _ in 0..3 {
            let mut receiver = receiver.clone();
            assert!(poll!(pin!(receiver.changed())).is_pending());
            assert_eq!(listed(), 1);
        }
        for _ in 0..100 {
            let mut receiver = receiver.clone();
            let wait = async move { assert!(poll!(pin!(receiver.changed())).is_pending()) };
            tokio::spawn(wait).await.unwrap();
            assert!(listed() <= 1 + FEW, "{}", listed());
        }
    }

    #[tokio::test]
    async fn losing_interest_at_one_place_leaves_the_other() {
        let (sender, receiver) = WatchChannel::channel(0);
        let mut crowd: Vec<_> = (0..2 * FEW).map(|_| waiter(&receiver)).collect();
        tokio::task::yield_now().await;
        let (mut one, mut other) = (receiver.clone(), receiver.clone());
        crowd.push(tokio::spawn(async move {
            let (mut one, mut other) = (Some(Box::pin(one.changed())), pin!(other.changed()));
            let lost_interest_in_one = poll_fn(|cx| {
                let news = other.as_mut().poll(cx);
                let Some(mut one) = one.take() else { return news };
                assert!(one.as_mut().poll(cx).is_pending());
                Poll::Pending
            });
            lost_interest_in_one.await.unwrap();
        }));
        tokio::task::yield_now().await;
        sender.send(1).unwrap();
        for task in crowd {
            tokio::time::timeout(Duration::from_secs(60), task).await.expect("it is woken").unwrap();
        }
    }

    fn waiter(receiver: &Receiver<u64>) -> tokio::task::JoinHandle<()> {
        let mut receiver = receiver.clone();
        tokio::spawn(async move { receiver.changed().await.unwrap() })
    }
}
