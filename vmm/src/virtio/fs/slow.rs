// SPDX-License-Identifier: Apache-2.0

//! Threads for requests that may take long, such as fsync on a slow disk: the thread of the
//! device goes on with the others, and is told by an eventfd when one of these is done. They
//! are started when there is a use for them: most pods never need one.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Most threads. More requests than that wait.
pub const MAX_THREADS: usize = 4;

const STACK: usize = 128 << 10;

/// Does one thing; returns what the device's thread is to know of it.
type Job<T> = Box<dyn FnOnce() -> T + Send>;

pub struct Pool<T> {
    shared: Arc<Shared<T>>,
    threads: Vec<JoinHandle<()>>,
    /// Most jobs whose results have not been taken.
    limit: usize,
    unfinished: usize,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    work: Condvar,
    done: EventFd,
}

struct State<T> {
    jobs: VecDeque<Job<T>>,
    results: Vec<T>,
    idle: usize,
    ends: bool,
}

impl<T: Send + 'static> Pool<T> {
    pub fn new(limit: usize) -> io::Result<Pool<T>> {
        let state = State { jobs: VecDeque::new(), results: Vec::new(), idle: 0, ends: false };
        let (state, work) = (Mutex::new(state), Condvar::new());
        let shared = Arc::new(Shared { state, work, done: EventFd::new(EFD_NONBLOCK)? });
        Ok(Pool { shared, threads: Vec::new(), limit, unfinished: 0 })
    }

    /// Becomes readable when there are results.
    pub fn done_fd(&self) -> RawFd {
        self.shared.done.as_raw_fd()
    }

    pub fn start(&mut self, job: impl FnOnce() -> T + Send + 'static) -> io::Result<()> {
        if self.unfinished == self.limit {
            return Err(io::Error::other("the driver made more requests than its queues hold"));
        }
        self.unfinished += 1;
        let mut state = self.shared.lock();
        state.jobs.push_back(Box::new(job));
        let needs_thread = state.jobs.len() > state.idle && self.threads.len() < MAX_THREADS;
        drop(state);
        self.shared.work.notify_one();
        if needs_thread {
            let shared = Arc::clone(&self.shared);
            let builder = std::thread::Builder::new().name("fs-slow".into()).stack_size(STACK);
            self.threads.push(builder.spawn(move || shared.work())?);
        }
        Ok(())
    }

    pub fn take_results(&mut self) -> Vec<T> {
        // Nonblocking: nothing to take is no error.
        let _ = self.shared.done.read();
        let results = std::mem::take(&mut self.shared.lock().results);
        self.unfinished -= results.len();
        results
    }
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                let result = job();
                state = self.lock();
                state.results.push(result);
                // Fails only when the counter is full: readable anyway.
                let _ = self.done.write(1);
            } else if state.ends {
                return;
            } else {
                state.idle += 1;
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }
}

impl<T> Drop for Pool<T> {
    /// What waits is dropped; what has begun is waited for.
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.ends = true;
        state.jobs.clear();
        drop(state);
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // It panics on a bug of ours only; the device is gone either way.
            let _ = thread.join();
        }
    }
}
