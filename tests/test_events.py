"""TensorBoard events: written without the package tensorboard, readable by it."""

import tensorflow as tf

from yt8m.events import EventWriter


def test_scalars_are_events_that_tensorboard_knows(tmp_path):
    with EventWriter(str(tmp_path)) as events:
        events.write(3, {"gap": 0.5, "loss": 2.0})
        events.write(4, {"gap": 0.75})
    (path,) = tmp_path.iterdir()
    found = []
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        event = tf.compat.v1.Event.FromString(record)
        for value in event.summary.value:
            assert value.metadata.plugin_data.plugin_name == "scalars"
            found.append((event.step, value.tag, float(tf.make_ndarray(value.tensor))))
    assert found == [(3, "gap", 0.5), (3, "loss", 2.0), (4, "gap", 0.75)]
