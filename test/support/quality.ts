/** Compares a served model with the reference figures in test/fixtures, through the HTTP API alone. */
import { readFileSync } from 'node:fs'

const fixture = (path: string): string => readFileSync(new URL(`../fixtures/${path}`, import.meta.url), 'utf8')

/** One greedy continuation of the reference: `margins[i]` = ln p(first) - ln p(second) at step i. */
interface GreedyRow {
  n: number
  prompt_ids: number[]
  generated_ids: number[]
  margins: number[]
}

/** How one continuation compares: the first step that differs and the reference's margin there. */
export interface GreedyResult {
  n: number
  divergedAt: number | undefined
  margin: number | undefined
}

async function post(url: string, body: unknown): Promise<unknown> {
  const response = await fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body),
  })
  const text = await response.text()
  if (!response.ok) throw new Error(`${url}: ${response.status} ${text}`)
  return JSON.parse(text)
}

/** The reference's 24 greedy continuations of SmolLM2 (64 tokens each). */
export function greedyRows(): GreedyRow[] {
  // Not by lines in general: the texts may hold other line separators.
  return fixture('smollm2/greedy.jsonl')
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as GreedyRow)
}

/** Decodes one row freely and finds its first divergence from the reference. */
export async function compareGreedy(base: string, model: string, row: GreedyRow): Promise<GreedyResult> {
  const answer = (await post(`${base}/v1/completions`, {
    model,
    prompt: row.prompt_ids,
    max_tokens: row.generated_ids.length,
    temperature: 0,
    ignore_eos: true,
    return_token_ids: true,
  })) as { choices: { token_ids: number[] }[] }
  const ids = answer.choices[0]?.token_ids ?? []
  const divergedAt = row.generated_ids.findIndex((id, i) => ids[i] !== id)
  return divergedAt < 0
    ? { n: row.n, divergedAt: undefined, margin: undefined }
    : { n: row.n, divergedAt, margin: row.margins[divergedAt] }
}

/** Perplexity over the first `count` windows and the reference's over the same ones. */
export async function perplexity(
  base: string,
  model: string,
  count: number,
): Promise<{ measured: number; reference: number }> {
  const reference = JSON.parse(fixture('wikitext-2/reference.json')) as {
    window: number
    windows: { scored: number; nll: number }[]
  }
  const { tokens } = (await post(`${base}/tokenize`, {
    model,
    prompt: fixture('wikitext-2/first-20-windows.txt'),
  })) as { tokens: number[] }
  let nll = 0
  let scored = 0
  for (let i = 0; i < count; i++) {
    const answer = (await post(`${base}/v1/completions`, {
      model,
      prompt: tokens.slice(i * reference.window, (i + 1) * reference.window),
      max_tokens: 0,
      echo: true,
      logprobs: 0,
    })) as { choices: { logprobs: { token_logprobs: (number | null)[] } }[] }
    const values = (answer.choices[0]?.logprobs.token_logprobs ?? []).filter((value) => value !== null)
    nll -= values.reduce((sum, value) => sum + value, 0)
    scored += values.length
  }
  const windows = reference.windows.slice(0, count)
  const expected = windows.reduce((sum, w) => sum + w.nll, 0) / windows.reduce((sum, w) => sum + w.scored, 0)
  return { measured: Math.exp(nll / scored), reference: Math.exp(expected) }
}
