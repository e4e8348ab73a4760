use super::params;

params! {
    /// One of the tensors that a page number indexes: the keys, the values or their scales of one layer. A page is plain bytes.
    pub struct PageTensor {
        /// Of page 0, aligned to 16 bytes; to 4 where `page_bytes` is no multiple of 16.
        pub address: u64,
        /// A multiple of 4. Page `i` begins at `address + i * page_bytes`.
        pub page_bytes: u64,
        /// Where the tensor's part of a staged page begins, in bytes; a multiple of 16.
        pub stage_offset: u64,
    }
}

params! {
    /// Copies whole pages of all tensors of a cache, bit for bit: within the cache (`page_copy`), from it to a staging buffer
    /// (`page_copy_out`) and back (`page_copy_in`). Every byte of a page that is read counts as read, appended to or not.
    ///
    /// No page may be written twice, nor both read and written: such a list is the caller's error, and what it leaves is
    /// unspecified. Pages that are not named keep their bits.
    ///
    /// Grid: [`page_copy::grid`](crate::page_copy::grid).
    pub struct PageCopy {
        /// [`PageTensor`] `[tensors]`.
        pub tensors: u64,
        /// `page_copy`: u32 `[pages, 2]`, each a source and a destination. Otherwise u32 `[pages]`: page `i` of the staging
        /// buffer is page `pages[i]` of the cache.
        pub pages: u64,
        /// `[pages]` records of `record_bytes`: each page's parts at their tensors' `stage_offset`. 0 for `page_copy`.
        pub staging: u64,
        /// A multiple of 16.
        pub record_bytes: u64,
        /// Blocks a page of the largest tensor: [`page_copy::blocks_per_page`](crate::page_copy::blocks_per_page).
        pub blocks_per_page: u32,
        pub reserved: u32,
    }
}
