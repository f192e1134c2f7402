import type { Setting } from '../contestants/contestant.ts'

/** What the runner tells a run's process, by its environment. */
export function environmentOf(setting: Setting, load?: number): Record<string, string> {
  return {
    BENCH_REDIS_URL: setting.redisUrl,
    BENCH_REST_URL: setting.rest.url,
    BENCH_REST_TOKEN: setting.rest.token,
    BENCH_CLUSTER_URL: setting.clusterUrl,
    BENCH_DIR: setting.dir,
    ...(load === undefined ? {} : { BENCH_LOAD: String(load) }),
  }
}

export function settingOf(env: Record<string, string | undefined>): { setting: Setting; load: number | undefined } {
  return {
    setting: {
      redisUrl: env['BENCH_REDIS_URL'] ?? 'redis://127.0.0.1:6379',
      rest: { url: env['BENCH_REST_URL'] ?? '', token: env['BENCH_REST_TOKEN'] ?? '' },
      clusterUrl: env['BENCH_CLUSTER_URL'] ?? '',
      dir: env['BENCH_DIR'] ?? '.',
    },
    load: env['BENCH_LOAD'] ? Number(env['BENCH_LOAD']) : undefined,
  }
}
