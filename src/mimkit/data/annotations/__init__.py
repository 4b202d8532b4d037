"""Annotated sets: pictures with their boxes, masks, joints or depths enter as files, Annotations leave."""
