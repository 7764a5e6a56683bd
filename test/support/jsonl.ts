import { readFileSync } from 'node:fs'

/** Rows of a fixture, a JSON value a line; lines end in "\n" only, texts may hold other line separators. */
export function readJsonl<T>(path: string): T[] {
  const text = readFileSync(new URL(`../fixtures/${path}`, import.meta.url), 'utf8')
  const lines = text.split('\n').filter((line) => line !== '')
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- the fixture's own shape
  return lines.map((line) => JSON.parse(line) as T)
}
