/**
 * Bytes of one message to an engine (`SessionRequest`): it takes no larger one, and the gateway sends none, since the
 * session, and every stream with it, ends at the first. Two million token ids fit.
 */
export const MAX_REQUEST_BYTES = 8 * 2 ** 20
