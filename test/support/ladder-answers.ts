/** What an answer must be, computed without a gateway: on one rung, or on one after the other. */
import { loadAddon } from '../../engine/addon.js'
import { modelAssets, readModelCard } from '../../engine/registry/index.js'
import { loadTextModel } from '../../gateway/text/model-text.js'
import type { TextModel } from '../../gateway/text/types.js'
import type { Job } from './any-protocol.js'
import { type InProcessEngine, engineInProcess } from './engine-in-process.js'
import { neutralSampling } from './fake-engine.js'
import { SMOLLM2_FILE } from './smollm2.js'

/** A rung ("model:precision") and how many tokens of the answer were there when it began. */
export interface Segment {
  variant: string
  from: number
}

/** Owns an engine with the ladder of the embedded model: `close` it. */
export class LadderAnswers {
  private readonly known = new Map<string, Promise<number[]>>()

  private constructor(
    private readonly box: InProcessEngine,
    private readonly text: TextModel,
  ) {}

  static async open(): Promise<LadderAnswers> {
    const path = JSON.stringify(SMOLLM2_FILE)
    const box = engineInProcess(`
devices: [{ id: cpu0, kind: cpu, memory_gb: 2 }]
models:
  - id: smollm2
    variants: [{ precision: fp16, path: ${path} }, { precision: int8, from: fp16 }, { precision: int4, from: fp16 }]
`)
    const card = readModelCard(SMOLLM2_FILE, (file) => loadAddon().readGguf(file))
    const text = await loadTextModel(modelAssets(card), 0)
    await box.settled()
    return new LadderAnswers(box, text)
  }

  /** The text of a job whose answer began on the first segment's rung and went on by the others. */
  async textOf(job: Job, segments: readonly Segment[]): Promise<string> {
    return this.text.decode(await this.idsOf(job, segments), true)
  }

  /** The numbers of tokens, from the last segment on, after which the answer's text is a beginning of `text`. */
  async beginnings(job: Job, segments: readonly Segment[], text: string): Promise<number[]> {
    const ids = await this.idsOf(job, segments)
    const first = segments.at(-1)?.from ?? 0
    const counts = Array.from({ length: ids.length - first }, (_, i) => first + i)
    // A character may be half told there.
    const told = (count: number): string => this.text.decode(ids.slice(0, count), true).replace(/\uFFFD+$/, '')
    return counts.filter((count) => text.startsWith(told(count)))
  }

  async close(): Promise<void> {
    await this.box.close()
    await this.text.close()
  }

  private idsOf(job: Job, segments: readonly Segment[]): Promise<number[]> {
    const key = JSON.stringify([job, segments])
    const ids = this.known.get(key) ?? this.generate(job, segments)
    this.known.set(key, ids)
    return ids
  }

  private async generate(job: Job, segments: readonly Segment[]): Promise<number[]> {
    const last = segments.at(-1)
    if (!last) return []
    const before = (await this.idsOf(job, segments.slice(0, -1))).slice(0, last.from)
    const prompt = await this.text.encodeChat([{ role: 'user', content: job.content }], '')
    const { tokens } = await this.box.ask(last.variant, [...prompt, ...before], {
      replayedTokens: before.length,
      maxTokens: job.maxTokens - before.length,
      sampling: neutralSampling({
        temperature: job.temperature,
        seed: job.seed,
        frequencyPenalty: job.frequency_penalty,
      }),
    })
    return [...before, ...tokens]
  }
}
