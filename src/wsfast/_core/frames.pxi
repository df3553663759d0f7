# ---- Frames and masking


cdef enum:
    # Smallest payload that is masked with the GIL released: below, releasing the GIL costs more than it gains.
    NOGIL_MASK = 65536


cdef bytes octets_of(data):
    """Return the octets of any buffer, in C order; a bytes object is not copied."""
    return <bytes>data if type(data) is bytes else memoryview(data).tobytes()


cdef bytes key_of(mask_key):
    cdef bytes key = octets_of(mask_key)

    if PyBytes_GET_SIZE(key) != WSF_KEY_SIZE:
        raise ValueError("mask must contain 4 bytes")
    return key


cdef void mask(uint8_t *dst, const uint8_t *src, size_t size, const uint8_t *key) noexcept:
    if size < NOGIL_MASK:
        wsf_mask(dst, src, size, key)
    else:
        with nogil:
            wsf_mask(dst, src, size, key)


def encode_frame(first, payload, mask_key=None):
    cdef uint8_t header[WSF_MAX_HEADER]
    cdef size_t header_size
    cdef bytes frame, data = octets_of(payload)
    cdef bytes key_bytes = None if mask_key is None else key_of(mask_key)
    cdef const uint8_t *key = NULL if key_bytes is None else <const uint8_t *>PyBytes_AS_STRING(key_bytes)
    cdef const uint8_t *source = <const uint8_t *>PyBytes_AS_STRING(data)
    cdef size_t size = PyBytes_GET_SIZE(data)
    cdef uint8_t *out

    if not 0 <= first <= 255:
        raise ValueError(f"first octet of a frame must be in range(256), not {first}")
    header_size = wsf_frame_header(header, <uint8_t><int>first, size, key)
    frame = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>(header_size + size))
    out = <uint8_t *>PyBytes_AS_STRING(frame)
    memcpy(out, header, header_size)
    if key == NULL:
        memcpy(out + header_size, source, size)
    else:
        mask(out + header_size, source, size, key)
    return frame


def apply_mask(data, mask_key):
    cdef bytes source = octets_of(data)
    cdef bytes key = key_of(mask_key)
    cdef bytes result = PyBytes_FromStringAndSize(NULL, PyBytes_GET_SIZE(source))

    mask(
        <uint8_t *>PyBytes_AS_STRING(result),
        <const uint8_t *>PyBytes_AS_STRING(source),
        PyBytes_GET_SIZE(source),
        <const uint8_t *>PyBytes_AS_STRING(key),
    )
    return result
