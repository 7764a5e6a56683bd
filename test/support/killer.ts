import type { GatewayProcess } from './gateway-process.js'

/** Counts of events after which the engine dies: the first anywhere among `most`, others soon, as replays are short. */
export function killMoments(random: () => number, kills: number, most: number): number[] {
  return Array.from({ length: kills }, (_, kill) => 1 + Math.floor(random() * (kill === 0 ? most : most / 4)))
}

/** Kills the engine as soon as the clients have heard so much since the last kill, and a new engine is there. */
export class Killer {
  kills = 0
  private news = 0
  private killed: number | undefined

  /** `before` runs right before each kill, with its number. */
  constructor(
    private readonly box: GatewayProcess,
    private readonly after: readonly number[],
    private readonly before: (kill: number) => void = () => undefined,
  ) {}

  readonly onNews = (): void => {
    const limit = this.after[this.kills]
    const engine = this.box.enginePids.at(-1)
    if (limit === undefined || ++this.news < limit || engine === undefined || engine === this.killed) return
    this.news = 0
    this.before(this.kills)
    this.kills++
    this.killed = engine
    process.kill(engine, 'SIGKILL')
  }
}
