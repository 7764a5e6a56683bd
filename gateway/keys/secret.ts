/** API keys as texts: "es_ID_SECRET". The id is public and finds the entry; the secret is 256 random bits. */
import { createHash, randomBytes, timingSafeEqual } from 'node:crypto'

const SECRET_BYTES = 32
const ID_BYTES = 6
const FORM = /^es_([a-z0-9]{1,32})_[A-Za-z0-9_-]{43}$/

/** A fresh key and what is kept of it. */
export interface NewKey {
  id: string
  /** Shown once, never stored. */
  text: string
  sha256: string
}

/** Draws a key. */
export function newKey(): NewKey {
  const id = randomBytes(ID_BYTES).toString('hex')
  const text = `es_${id}_${randomBytes(SECRET_BYTES).toString('base64url')}`
  return { id, text, sha256: digestOf(text).toString('hex') }
}

/**
 * SHA-256 of the whole key. A slow password hash would protect a guessable secret; 256 random bits cannot be guessed
 * from their digest at any speed, and a slow hash on every request would be a way to overload the gateway.
 */
export function digestOf(text: string): Buffer {
  return createHash('sha256').update(text).digest()
}

/** The id in a key's text; undefined when the text has not the form of a key. */
export function idOf(text: string): string | undefined {
  return FORM.exec(text)?.[1]
}

/** True when both digests are the same; takes the same time wherever they differ. */
export function sameDigest(a: Buffer, b: Buffer): boolean {
  return a.length === b.length && timingSafeEqual(a, b)
}
