import { createHash } from 'node:crypto'

/**
 * Identity of a full block: digest of its tokens and of everything before them. SHA-256, because a collision
 * would show one request's text to another.
 */
export type BlockHash = string

/**
 * Start of a tenant's chains: equal prompts of different tenants never meet, and neither do those of different rotary
 * tables (0 = the model's). Pools are per variant already.
 */
export function rootHash(tenant: string, ropeLength = 0): BlockHash {
  return createHash('sha256').update(`tenant\0${ropeLength}\0`).update(tenant).digest('base64')
}

/** Hash of the block that follows `parent` and holds `tokens`. */
export function chainHash(parent: BlockHash, tokens: Int32Array): BlockHash {
  const bytes = new Uint8Array(tokens.buffer, tokens.byteOffset, tokens.byteLength)
  return createHash('sha256').update(parent).update(bytes).digest('base64')
}
