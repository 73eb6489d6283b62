// The view of one model.
import { Loading } from './ui';
export function ModelView({ name }: { name: string }) {
  return <Loading what={name} />;
}
