/** What a call's metadata says. */
import type { Metadata } from '@grpc/grpc-js'
import { bearerToken } from '../origin.js'

/** The first value of an entry. */
export function entryOf(metadata: Metadata, name: string): string | undefined {
  return metadata.get(name)[0]?.toString()
}

/** The bearer token of the `authorization` entry. */
export function callToken(metadata: Metadata): string | undefined {
  return bearerToken(entryOf(metadata, 'authorization'))
}
