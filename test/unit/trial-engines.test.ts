import { describe, expect, it } from 'vitest'
import { Standing, TrialGate } from '../../gateway/generate/trial.js'
import { randoms } from '../support/randoms.js'
import { settle } from '../support/turn.js'

/** Engines of a box with one gate; a life is one session. */
class Engines {
  readonly gate = new TrialGate()
  /** Who was let in, in order. */
  readonly admitted: string[] = []
  private readonly names = new Map<Standing, string>()

  /** A request comes to an engine's life, for the first time or again. */
  enter(standing: Standing, life: object, name = this.names.get(standing) ?? ''): Standing {
    this.names.set(standing, name)
    const turn = this.gate.enter(standing, life)
    if (turn) void turn.then(() => this.admitted.push(name))
    else this.admitted.push(name)
    return standing
  }

  /** A life ends by itself under some requests. */
  end(life: object, ...lost: Standing[]): void {
    for (const standing of lost) this.gate.lost(standing, life)
    this.gate.verdict(life, true)
  }
}

describe('the gate of several engines', () => {
  const [one, two] = [{ life: 1 }, { life: 2 }]

  it('keeps nobody waiting at one for a suspect whose own engine has not come back', async () => {
    const engines = new Engines()
    const suspect = engines.enter(new Standing(), two, 'suspect')
    engines.end(two, suspect)
    engines.enter(new Standing(), one, 'new')
    await settle()
    expect(engines.admitted).toEqual(['suspect', 'new'])
    expect(engines.gate.waiting).toBe(0)
  })

  it('tries a suspect that comes back later than others to the same engine before those that come after it', async () => {
    const engines = new Engines()
    const suspect = engines.enter(new Standing(), one, 'suspect')
    engines.end(one, suspect)
    const next = { life: 3 }
    engines.enter(new Standing(), next, 'other rung')
    await settle()
    engines.enter(new Standing(), next, 'after')
    engines.enter(suspect, next)
    await settle()
    expect(engines.admitted).toEqual(['suspect', 'other rung', 'suspect'])
    engines.gate.progressed(suspect, true)
    await settle()
    expect(engines.admitted.slice(3)).toEqual(['after'])
  })

  it('tries the suspects of one by turns, whatever happens to another', async () => {
    const engines = new Engines()
    const [first, second] = ['first', 'second'].map((name) => engines.enter(new Standing(), one, name))
    const other = engines.enter(new Standing(), two, 'other')
    engines.gate.progressed(other, true)
    if (first && second) engines.end(one, first, second)
    const next = { life: 3 }
    for (const standing of [first, second]) if (standing) engines.enter(standing, next)
    await settle()
    engines.end(two, other)
    await settle()
    expect(engines.admitted).toEqual(['first', 'second', 'other', 'first'])
    if (first) engines.gate.progressed(first, true)
    await settle()
    expect(engines.admitted.slice(4)).toEqual(['second'])
  })

  it('lets new ones wait for a suspect that runs elsewhere before it is known how its engine ended', async () => {
    const engines = new Engines()
    const suspect = engines.enter(new Standing(), two, 'suspect')
    engines.gate.lost(suspect, two)
    engines.enter(suspect, one)
    engines.gate.verdict(two, true)
    engines.enter(new Standing(), one, 'new')
    await settle()
    expect(engines.admitted).toEqual(['suspect', 'suspect'])
    engines.gate.progressed(suspect, true)
    await settle()
    expect(engines.admitted.slice(2)).toEqual(['new'])
  })

  it('does not suspect a request that came through elsewhere before it was known how its engine ended', async () => {
    const engines = new Engines()
    const request = engines.enter(new Standing(), two, 'request')
    engines.gate.lost(request, two)
    engines.enter(request, one)
    engines.gate.progressed(request, true)
    engines.gate.verdict(two, true)
    expect(engines.gate.enter(new Standing(), one)).toBeUndefined()
  })

  it('lets everyone in at last, whatever happens to the engines and in whatever order it is told', async () => {
    for (let seed = 1; seed <= 60; seed++) {
      const random = randoms(seed)
      const pick = (count: number): number => Math.floor(random() * count)
      const gate = new TrialGate()
      const lives = [{}, {}, {}]
      const untold: object[] = []
      const running = new Map<Standing, object>()
      const away = new Set<Standing>()
      const enter = (standing: Standing, life: object): void => {
        const go = (): void => {
          if (standing.over) return
          if (lives.includes(life)) running.set(standing, life)
          else {
            gate.retreat(standing)
            away.add(standing)
          }
        }
        const turn = gate.enter(standing, life)
        if (turn) void turn.then(go)
        else go()
      }
      const again = (): void => {
        for (const standing of away) {
          if (standing.refused) gate.end(standing)
          else enter(standing, lives[pick(3)] ?? {})
        }
        away.clear()
      }
      const end = (standing: Standing): void => {
        running.delete(standing)
        gate.end(standing)
      }
      const die = (place: number): void => {
        const dead = lives[place] ?? {}
        lives[place] = {}
        untold.push(dead)
        for (const [standing, life] of running) {
          if (life !== dead) continue
          gate.lost(standing, dead)
          running.delete(standing)
          away.add(standing)
        }
      }
      const tell = (): void => {
        for (const life of untold.splice(0)) gate.verdict(life, random() < 0.7)
      }
      for (let event = 0; event < 80; event++) {
        const some = [...running.keys()][pick(Math.max(1, running.size))]
        const what = random()
        if (what < 0.35) enter(new Standing(), lives[pick(3)] ?? {})
        else if (what < 0.5) die(pick(3))
        else if (what < 0.65) tell()
        else if (what < 0.75) again()
        else if (some && what < 0.85) gate.progressed(some, random() < 0.5)
        else if (some && what < 0.9) gate.excuse(some)
        else if (some && what < 0.95) end(some)
        if (random() < 0.5) await settle()
      }
      tell()
      for (let turn = 0; turn < 300 && running.size + away.size + gate.waiting > 0; turn++) {
        again()
        await settle()
        for (const standing of running.keys()) {
          gate.progressed(standing, true)
          end(standing)
        }
      }
      expect({ seed, waiting: gate.waiting, running: running.size, away: away.size }).toEqual({
        seed,
        waiting: 0,
        running: 0,
        away: 0,
      })
    }
  })
})
