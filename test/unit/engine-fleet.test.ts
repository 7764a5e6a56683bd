import { expect, it } from 'vitest'
import { EngineFleet, type Supervised } from '../../gateway/engine-client/fleet.js'
import { EngineOperator } from '../../gateway/engine-client/operator.js'
import type { EngineSession } from '../../gateway/engine-client/session.js'
import { Waiters } from '../../gateway/engine-client/waiters.js'
import {
  DeviceStatus,
  type EngineClient,
  EngineStatus,
  VariantState,
  VariantStatus,
} from '../../proto/gen/edgeshift/v1/engine.js'

/** An engine of one device that has one resident variant and does what an operator asks. */
class FakeEngine implements Supervised {
  readonly state = 'up'
  readonly lastExit = undefined
  readonly session = {} as EngineSession
  pinned = false
  /** How many sequences it runs: the engine with fewer is asked first. */
  running = 0

  constructor(readonly device: string) {}

  get variant(): VariantStatus {
    const { device, running, pinned } = this
    return VariantStatus.create({ name: 'm:int4', model: 'm', device, state: VariantState.READY, running, pinned })
  }

  get status(): EngineStatus {
    const devices = [DeviceStatus.create({ id: this.device, budgetBytes: 1000 })]
    return EngineStatus.create({ variants: [this.variant], devices })
  }

  readonly client = {
    pin: ({ pinned }: { pinned: boolean }, reply: (error: null, variant: VariantStatus) => void) => {
      this.pinned = pinned
      queueMicrotask(() => reply(null, this.variant))
      return { cancel: () => undefined }
    },
  } as unknown as EngineClient

  start(): void {}
  async stop(): Promise<void> {}
  setHangAfter(): void {}
  async refresh(): Promise<void> {}
  async confirm(): Promise<void> {}
}

it('an operator pins and unpins a rung at every engine that has it', async () => {
  const [one, two] = [new FakeEngine('one'), new FakeEngine('two')]
  const operator = new EngineOperator(new EngineFleet([one, two], new Waiters()))
  expect(await operator.pin('m:int4', true)).toMatchObject({ device: 'one', pinned: true })
  expect([one.pinned, two.pinned]).toEqual([true, true])
  one.running = 3
  expect(await operator.pin('m:int4', false)).toMatchObject({ device: 'two', pinned: false })
  expect([one.pinned, two.pinned]).toEqual([false, false])
})

it('a rung is shown as pinned while any engine keeps it', async () => {
  const [one, two] = [new FakeEngine('one'), new FakeEngine('two')]
  two.pinned = true
  const operator = new EngineOperator(new EngineFleet([one, two], new Waiters()))
  expect((await operator.residency()).variants).toMatchObject([{ name: 'm:int4', device: 'one', pinned: true }])
})
