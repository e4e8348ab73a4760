//! What the C library's allocator keeps.

/// Arenas at most. glibc's own choice is eight a processor, and each keeps what it once held.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const ARENAS: i32 = 4;
/// Allocations from so many bytes on go back to the system when they are freed. glibc's own bound grows to 32 MiB with what is freed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const OWN_PAGES_BYTES: i32 = 256 << 10;

/// Keeps a server's resident memory from growing with the largest requests that each of its threads ever met: holds glibc's allocator to a few
/// arenas, and large allocations to pages of their own. Does nothing with other C libraries.
///
/// It concerns the whole process, so it is the program's to call, before it starts threads; [`Server`](crate::Server) doesn't.
pub fn return_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: sets two numbers of the allocator's, under its own lock; values that it doesn't take it ignores.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
        libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_PAGES_BYTES);
    }
}

/// Gives what is free back to the system, where glibc's allocator would keep it in the arena of the thread that had it. A long text's many
/// small pieces are hundreds of megabytes, and the next text may be another thread's. Takes milliseconds.
pub(crate) fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: looks for whole free pages under the allocator's own locks; nothing that is in use moves.
    unsafe {
        libc::malloc_trim(0);
    }
}
