//! Lanes that look at memory again and again until another lane has written there. A lane that has found what it found before sleeps: else it would look thousands
//! of times while the others get on.

use std::collections::HashMap;

use crate::context::Context;
use crate::lane::State;
use crate::site::Site;

/// Places that a lane remembers: it forgets all of them rather than have more.
const REMEMBERED: usize = 64;

/// Lanes that sleep until somebody writes, by the 16 bytes that they looked at.
#[derive(Debug, Default)]
pub(crate) struct Sleepers(HashMap<u64, Vec<usize>>);

/// What a lane has found at places where it looked, and may look again.
#[derive(Debug, Default)]
pub(crate) struct Found(Vec<(u64, [u32; 4])>);

fn padded(values: &[u32]) -> [u32; 4] {
    let mut padded = [0; 4];
    padded[..values.len()].copy_from_slice(values);
    padded
}

impl Found {
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

impl Context {
    /// Whether the running lane, which looks at `address` and has found `values` there before, is to be suspended until somebody writes there.
    pub fn sleeps_at(&mut self, address: u64, values: &[u32], site: Site) -> bool {
        let current = self.current;
        if !self.lanes[current].found.0.contains(&(address, padded(values))) {
            return false;
        }
        self.states[current] = State::Blocked;
        self.lanes[current].site = site;
        self.sleepers.0.entry(address / 16).or_default().push(current);
        true
    }

    /// Takes note of what the running lane has found at `address`: it will look again only if that isn't what it waits for.
    pub fn found(&mut self, address: u64, values: &[u32]) {
        let Found(found) = &mut self.lanes[self.current].found;
        found.retain(|&(at, _)| at != address);
        if found.len() == REMEMBERED {
            found.clear();
        }
        found.push((address, padded(values)));
    }

    /// Wakes lanes that wait for somebody to write at `address`.
    #[inline]
    pub fn wake_pollers(&mut self, address: u64) {
        if !self.sleepers.0.is_empty()
            && let Some(threads) = self.sleepers.0.remove(&(address / 16))
        {
            self.wake_all(threads);
        }
    }

    /// Wakes all lanes that wait for somebody to write. Whether there are any.
    pub fn wake_all_pollers(&mut self) -> bool {
        let mut threads: Vec<usize> = self.sleepers.0.drain().flat_map(|(_, threads)| threads).collect();
        // Whatever the order of the map.
        threads.sort_unstable();
        let any = !threads.is_empty();
        self.wake_all(threads);
        any
    }

    fn wake_all(&mut self, threads: Vec<usize>) {
        for thread in threads {
            self.states[thread] = State::Ready;
            self.woken.push(thread / 32);
        }
    }

    /// Forgets all of them, and what lanes have found.
    pub fn forget_polls(&mut self) {
        self.sleepers.0.clear();
        self.lanes.iter_mut().for_each(|lane| lane.found.clear());
    }
}
