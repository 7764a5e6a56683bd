import { describe, expect, it } from 'vitest'
import { CLEAR_TOKENS, Standing, TrialGate } from '../../gateway/generate/trial.js'
import { randoms } from '../support/randoms.js'
import { settle } from '../support/turn.js'

/** A request as the gate sees it: it ends after `length` tokens, and kills the engine instead of giving token `kills`. */
class Request {
  readonly standing = new Standing()
  tokens = 0
  /** Tokens it had at the crash before which it last came through. */
  mark = 0

  constructor(
    readonly name: string,
    readonly length: number,
    readonly kills = Infinity,
  ) {}

  get ended(): boolean {
    return this.standing.refused || this.tokens === this.length
  }
}

/** An engine that gives every request in flight one token a step, behind the gate. */
class Box {
  readonly gate = new TrialGate()
  readonly inFlight = new Set<Request>()
  crashes = 0
  steps = 0
  private session = {}

  constructor(readonly requests: Request[]) {
    for (const request of requests) this.submit(request)
  }

  get refused(): string[] {
    return this.requests.filter(({ standing }) => standing.refused).map(({ name }) => name)
  }

  get done(): boolean {
    return this.requests.every(({ ended }) => ended)
  }

  submit(request: Request): void {
    const { session } = this
    const go = (): void => {
      if (session !== this.session) return (this.gate.retreat(request.standing), this.submit(request))
      this.inFlight.add(request)
    }
    const turn = this.gate.enter(request.standing, session)
    if (turn) void turn.then(go)
    else go()
  }

  /** One step: everyone in flight gets a token, unless one of them kills it. */
  async step(): Promise<void> {
    this.steps++
    if ([...this.inFlight].some(({ tokens, kills }) => tokens + 1 === kills)) return this.crash(true)
    for (const request of this.inFlight) {
      request.tokens++
      this.gate.progressed(request.standing, request.tokens - request.mark >= CLEAR_TOKENS)
      if (!request.ended) continue
      this.inFlight.delete(request)
      this.gate.end(request.standing)
    }
    await settle()
  }

  /** The engine dies: by itself, or because it is killed. */
  async crash(own = false): Promise<void> {
    this.crashes++
    const lost = [...this.inFlight]
    this.inFlight.clear()
    const dead = this.session
    this.session = {}
    for (const request of lost) {
      if (request.standing.clear) request.mark = request.tokens
      this.gate.lost(request.standing, dead)
    }
    this.gate.verdict(dead, own)
    for (const request of lost) if (!request.standing.refused) this.submit(request)
    await settle()
  }
}

const many = (count: number, length: number): Request[] =>
  Array.from({ length: count }, (_, index) => new Request(`r${index}`, length))

describe('TrialGate', () => {
  it('lets everyone through while nothing happens, and together after a first crash', async () => {
    const box = new Box(many(100, 20))
    expect(box.inFlight.size).toBe(100)
    await box.crash()
    expect(box.inFlight.size).toBe(100)
    expect(box.gate.waiting).toBe(0)
  })

  it('runs suspects alone, then more and more at a time, and new requests after them', async () => {
    const box = new Box(many(100, 500))
    await box.crash()
    await box.crash()
    const newcomer = new Request('new', 5)
    box.requests.push(newcomer)
    box.submit(newcomer)
    const sizes: number[] = []
    for (let before = 0; before < 100;) {
      if (box.inFlight.size > before) sizes.push(box.inFlight.size - before)
      before = box.inFlight.size
      expect(box.inFlight.has(newcomer)).toBe(false)
      await box.step()
    }
    expect(sizes.slice(0, 10)).toEqual([1, 1, 1, 1, 1, 1, 1, 1, 2, 2])
    expect(box.steps).toBeLessThan(22 * CLEAR_TOKENS)
    for (let step = 0; step < CLEAR_TOKENS; step++) await box.step()
    expect(box.inFlight.has(newcomer)).toBe(true)
  })

  it.each([1, 3, 7, 50])('refuses one poison request alone when its token %d kills the engine', async (token) => {
    for (const place of [0, 40, 99]) {
      const requests = many(100, 60)
      requests[place] = new Request('poison', 60, token)
      const box = new Box(requests)
      while (!box.done) await box.step()
      expect(box.refused).toEqual(['poison'])
      // A hundred that came together: three crashes where it kills before it has come through, else one more.
      expect(box.crashes).toBeLessThanOrEqual(token < CLEAR_TOKENS ? 3 : 4)
      expect(box.gate.waiting).toBe(0)
    }
  })

  it.each([1, 2, 3])('refuses one that comes beside a hundred others at the second crash: token %d', async (token) => {
    for (const news of [0, 1, 15]) {
      const box = new Box(many(100, 200))
      for (let step = 0; step < 10; step++) await box.step()
      for (const request of [...many(news, 50), new Request('poison', 60, token), ...many(news, 50)]) {
        box.requests.push(request)
        box.submit(request)
      }
      while (!box.done) await box.step()
      expect(box.refused).toEqual(['poison'])
      expect(box.crashes).toBe(2)
    }
  })

  it('refuses one that is alone in the box at the second crash', async () => {
    for (const token of [1, 3, 30]) {
      const box = new Box([new Request('poison', 60, token)])
      while (!box.done) await box.step()
      expect([box.refused, box.crashes]).toEqual([['poison'], 2])
    }
  })

  it('holds no kill from outside against a request that is alone at the second crash', async () => {
    const box = new Box(many(1, 60))
    await box.crash(true)
    await box.crash(false)
    expect(box.refused).toEqual([])
    for (let step = 0; step < CLEAR_TOKENS; step++) await box.step()
    await box.crash(true)
    while (!box.done) await box.step()
    expect([box.refused, box.crashes]).toEqual([[], 3])
  })

  it('does not keep those waiting that had come through when the engine dies by itself', async () => {
    const box = new Box(many(100, 200))
    for (let step = 0; step < CLEAR_TOKENS; step++) await box.step()
    const news = many(3, 50)
    for (const request of news) {
      box.requests.push(request)
      box.submit(request)
    }
    await box.crash(true)
    expect(box.inFlight.size).toBe(100)
    for (let step = 0; step < 4 * CLEAR_TOKENS; step++) await box.step()
    expect(box.inFlight.size).toBe(103)
    expect(box.refused).toEqual([])
  })

  it('finds two poison requests', async () => {
    const requests = many(30, 40)
    requests[5] = new Request('p1', 40, 10)
    requests[20] = new Request('p2', 40, 10)
    const box = new Box(requests)
    while (!box.done) await box.step()
    expect(box.refused).toEqual(['p1', 'p2'])
  })

  it('refuses nobody for what kills the engine from outside', async () => {
    for (let seed = 1; seed <= 50; seed++) {
      const random = randoms(seed)
      const box = new Box(many(100, 100))
      // Twenty kills, anywhere from at once to long after the last one.
      for (let kill = 0; kill < 20; kill++) {
        const steps = Math.floor(random() * 40)
        for (let step = 0; step < steps; step++) await box.step()
        await box.crash()
        for (const request of many(100, 100).slice(0, 100 - box.inFlight.size - box.gate.waiting)) {
          box.requests.push(request)
          box.submit(request)
        }
      }
      expect(box.refused).toEqual([])
    }
  })

  it('does not let a request that ends or is held up keep others waiting', async () => {
    const box = new Box(many(3, 50))
    await box.crash()
    await box.crash()
    const [first] = box.inFlight
    expect(box.inFlight.size).toBe(1)
    if (first) box.gate.excuse(first.standing)
    await settle()
    expect(box.inFlight.size).toBe(2)
  })

  it('asks of an engine that died only for those that were on it', async () => {
    const gate = new TrialGate()
    const [poison, other] = [new Standing(), new Standing()]
    expect(gate.enter(other, { engine: 'other' })).toBeUndefined()
    for (const session of [{ life: 1 }, { life: 2 }]) {
      await gate.enter(poison, session)
      gate.lost(poison, session)
      gate.verdict(session, true)
    }
    // Beside one that had not come through either, elsewhere, it is alone to blame.
    expect([poison.refused, other.refused, other.crashes]).toEqual([true, false, 0])
    gate.progressed(other, true)
    gate.end(poison)
    gate.end(other)
    expect(gate.waiting).toBe(0)
  })
})
