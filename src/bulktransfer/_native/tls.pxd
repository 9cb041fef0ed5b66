from bulktransfer._native.farlink cimport bt_stream

cdef const bt_stream* tls_stream() noexcept
cdef void* tls_open(int fd, object tls) except NULL
cdef void tls_forget(void* self) noexcept
